"""The `transform` option: the function applied to the x of every example, once, before the model sees it.

By default, torchvision's images go through the transform of the model's weights, where it came with weights, else
become tensors; other data stay as they are.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectra.errors import describe
from spectra.inputs.model import pretrained_weights
from spectra.inputs.spec import check_options, input_error, parse_spec, resolve

OPTION = "`transform`"
INSTANCE = "name what it makes: file.py:transform, for a line transform = NAME(...) in that file"


@dataclass(frozen=True)
class Transform:
    """A transform of x, with its name for the record.

    Attributes: function: the function of x. name: its name for the record. typed: whether the user named it; a default
    is for torchvision's images alone.
    """

    function: Callable[[Any], Any]
    name: str
    typed: bool = False

    def __call__(self, x: Any, index: int) -> Any:
        """Apply the function to the x of one example. Raises SpectraError where it fails, or returns a function."""
        try:
            result = self.function(x)
        except Exception as error:
            hint = "it is the default here; name your own as file.py:name"
            if self.typed:
                hint = f"it is called with x alone; if it makes a transform, {INSTANCE}"
            text = f"it failed on example {index} with {describe(error)}; {hint}"
            raise input_error(OPTION, self.name, text) from error
        if callable(result):
            text = f"it gave a {type(result).__name__} for example {index}, no tensor; {INSTANCE}"
            raise input_error(OPTION, self.name, text)
        return result


def to_tensor(image: Any) -> Tensor:
    """A PIL image as (channels, height, width), bytes scaled to [0, 1]; a tensor as it is."""
    from torchvision.transforms import functional

    return image if isinstance(image, Tensor) else functional.to_tensor(image)


TO_TENSOR = Transform(to_tensor, "to tensor")


def choose_transform(spec: str | None, model: str) -> Transform:
    """What `spec` names, or the default for a model: its weights' own transform, else to tensor.

    Args:
        spec: `path/to/file.py:name` or `package.module:name` of a function, a Compose or a module that takes x; what
            follows a `?` goes to it as keywords. None where the user named none.
        model: the model as named on the command line.

    Raises:
        SpectraError: no such name, it does not take x and these options, or the model has no such weights.
    """
    if spec is not None:
        return Transform(_typed(spec), spec, typed=True)
    if weights := pretrained_weights(model):
        return Transform(weights.transforms(), repr(weights))
    return TO_TENSOR


def _typed(spec: str) -> Callable[[Any], Any]:
    name, options = parse_spec(spec, OPTION)
    function = resolve(name, OPTION)
    if inspect.isclass(function):
        raise input_error(OPTION, name, f"it is a class; {INSTANCE}")
    if not callable(function):
        came = type(function).__name__
        raise input_error(OPTION, name, f"expected a callable, got {came}; name a function that takes x")
    called = function.forward if isinstance(function, nn.Module) else function
    check_options(called, name, options, OPTION, ["x"])
    return partial(function, **options) if options else function
