"""The `transform` option: a function that is applied once to the x of every example before the model gets it.

By default, torchvision's images go through the transform of the model's pretrained weights, or become tensors if it has
none. Other data are not changed.
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
INSTANCE = "add a line transform = NAME(...) to the file, and name it: file.py:transform"


@dataclass(frozen=True)
class Transform:
    """A transform of x."""

    function: Callable[[Any], Any]
    name: str  # for the record
    typed: bool = False  # whether the user named it; a default applies to torchvision's images only

    def __call__(self, x: Any, index: int) -> Any:
        """Apply the function to the x of one example. Raises SpectraError where it fails, or returns a function."""
        try:
            result = self.function(x)
        except Exception as error:
            hint = "it is the default transform; name your own as file.py:name"
            if self.typed:
                hint = f"it is called with x only; if it returns a transform, {INSTANCE}"
            text = f"it failed on example {index} with {describe(error)}; {hint}"
            raise input_error(OPTION, self.name, text) from error
        if callable(result):
            text = f"it returned a {type(result).__name__} for example {index}, not a tensor; {INSTANCE}"
            raise input_error(OPTION, self.name, text)
        return result


def to_tensor(image: Any) -> Tensor:
    """Convert a PIL image to a tensor (channels, height, width), bytes scaled to [0, 1]; a tensor is not changed."""
    from torchvision.transforms import functional

    return image if isinstance(image, Tensor) else functional.to_tensor(image)


TO_TENSOR = Transform(to_tensor, "to tensor")


def choose_transform(spec: str | None, model: str) -> Transform:
    """Return the transform that `spec` names, or the default: that of the model's pretrained weights, else to tensor.

    Args:
        spec: `path/to/file.py:name` or `package.module:name` of a function, a Compose or a module that takes x; options
            after a `?` become keyword arguments. None: the default.
        model: the name of the model, as on the command line.

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
