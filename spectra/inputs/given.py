"""Objects of the caller's own in place of names: a module, a loss of PyTorch or a function, batches and tensors.

None of them is changed. A module that has to be in another dtype or on another device is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, IterableDataset

from spectra.curvature.evaluation import cut_batches
from spectra.errors import SpectraError, describe
from spectra.inputs.chance import seeded
from spectra.inputs.data import Data
from spectra.inputs.examples import TARGETS, checked, plain, read, widened
from spectra.inputs.loss import loss_of
from spectra.inputs.model import cast, refuse_unmade, renormalise_embeddings, uncompiled
from spectra.problem.losses import Loss
from spectra.problem.problem import Batch

GIVEN = "given in Python"  # in records, of what has no name


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a module, those of its first trained parameter."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    first = next((p for p in floating if p.requires_grad), floating[0] if floating else torch.empty(0))
    return first.device, first.dtype


def own_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """The caller's module on the given device and in the given dtype, and notes on what was changed.

    It is the caller's own object, unless something in it has to be changed for that; then it is a copy. Raises
    SpectraError.
    """
    model = unwrapped(model)
    name = type(model).__name__
    refuse_unmade(model, name)
    tensors = [*model.parameters(), *model.buffers()]
    moved = any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors)
    limited = any(getattr(module, "max_norm", None) is not None for module in model.modules())
    compiled = any(module._compiled_call_impl or hasattr(module, "_orig_mod") for module in model.modules())
    bare = any(t.is_inference() for t in tensors)  # made under torch.inference_mode(), without derivatives
    if not (moved or limited or compiled or bare):
        return model, []
    try:
        model = uncompiled(copy.deepcopy(model))
    except Exception as error:
        way_out = "leave dtype and device out" if moved else "take that out of the module"
        raise SpectraError(f"`model`: {name} cannot be copied ({describe(error)}); {way_out}") from error
    return cast(model, device, dtype), renormalise_embeddings(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and data parallelism. Raises SpectraError where parameters are sharded."""
    if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
        return unwrapped(compiled)
    if isinstance(model, DataParallel | DistributedDataParallel):
        return unwrapped(model.module)
    fully_sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if fully_sharded or any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise SpectraError("`model`: its parameters are sharded over processes; save checkpoints, and watch those")
    return model


def own_loss(loss: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Loss:
    """The Loss for an object: PyTorch's own losses become ours, which know their distributions, others a CustomLoss.

    Args:
        loss: a loss of ours, as it is; one of PyTorch's (`spectra.inputs.torch_losses`); another module or function of
            (output, target) that returns values of the examples, or the batch's mean; or one of (output) alone that
            returns the distribution of the targets.
        device, dtype: where a module with tensors of its own is needed.

    Raises:
        SpectraError: a class, or something that cannot be called.
    """
    if isinstance(loss, type) or not may_be_loss(loss):
        came = getattr(loss, "__name__", type(loss).__name__)
        way_out = f"call it first: {came}()" if isinstance(loss, type) else "give a loss or a function (output, target)"
        raise SpectraError(f"`loss`: {came} is no loss; {way_out}")
    if isinstance(loss, Loss):
        return loss
    bare = loss.func if isinstance(loss, partial) else loss
    name = getattr(bare, "__name__", type(bare).__name__)
    if isinstance(bare, nn.Module):
        bare = copy.deepcopy(bare)
        loss = partial(bare, *loss.args, **loss.keywords) if isinstance(loss, partial) else bare
    return loss_of(loss, name, device, dtype)


def may_be_loss(value: Any) -> bool:
    """Whether a value is a loss of ours, or can be called as a function of (output, target)."""
    return isinstance(value, Loss) or callable(value)


def own_data(data: Any, samples: int | None, seed: int, batch_size: int | None) -> list[Batch] | Data:
    """The examples of an object: in one piece where they come as tensors or one by one, else in the batches in which
    they come.

    Args:
        data: a pair (x, y) of tensors or arrays; a map-style data set of items (x, y); a DataLoader or another iterable
            of batches (x, y), read once; or a list of `Batch`. Items and batches may be mappings that hold y under
            `labels` or `label`.
        samples: the number of examples to choose by the seed; None for all.
        seed: the seed of the choice, and of loaders that shuffle.
        batch_size: the size of batches to be made anew; None leaves them.

    Raises:
        SpectraError: no examples, of another form, or not finite.
    """
    name = data_name(data)
    if isinstance(data, Data):
        data = (data.inputs, data.targets)
    if is_pair(data) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
        with seeded(seed):
            return Data(*read(tuple(data) if is_pair(data) else data, samples, seed, None, name))
    with seeded(seed):  # from which a loader that shuffles draws
        batches = list(read_batches(data, name))
    if not batches:
        raise SpectraError(f"`data`: {name} is empty; give one batch at least")
    if samples is not None:
        batches = chosen(batches, samples, seed)
    if batch_size is not None:
        batches = recut(batches, batch_size)
    return batches


def data_name(data: Any) -> str:
    """The name of the data in a record."""
    return "tensors" if is_pair(data) else type(data).__name__


def is_pair(data: Any) -> TypeGuard[tuple[Any, Any] | list[Any]]:
    """Whether data are x and y of all examples, and not two batches."""
    if not (isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor | np.ndarray)):
        return False
    leaves = tree_leaves(data[0])
    return bool(leaves) and all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves)


def read_batches(data: Any, name: str) -> Iterator[Batch]:
    """Yield the batches of an iterable; examples are numbered as they come. Raises SpectraError."""
    if isinstance(data, Mapping | str) or not isinstance(data, Iterable):
        raise SpectraError(f"`data`: {name} is no data; give a DataLoader, batches (x, y), tensors (x, y), or a name")
    count = 0
    for number, item in enumerate(data):
        if isinstance(item, Batch):
            yield item
            continue
        x, y = halves(item, f"batch {number} of {name}")
        x, y = tree_map(ordinary, widened(x)), ordinary(widened(y))
        indices = torch.arange(count, count + length(x, y, f"batch {number} of {name}"))
        checked(x, y, indices, name)
        yield Batch(x, y, indices)
        count += len(indices)


def halves(item: Any, what: str) -> tuple[Any, Any]:
    """The x and y of a batch. Raises SpectraError."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return plain(item[0]), plain(item[1])
    if isinstance(item, Mapping) and len(item) > 1 and len(under := [key for key in TARGETS if key in item]) == 1:
        rest = plain(item)
        return rest, rest.pop(under[0])
    wanted = f"a pair (x, y), or a mapping with y under {' or '.join(TARGETS)}"
    raise SpectraError(f"`data`: {what} is a {type(item).__name__}; every batch has to be {wanted}")


def ordinary(leaf: Any) -> Any:
    """A tensor that may take part in derivatives: a copy where it was made under torch.inference_mode()."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def length(x: Any, y: Any, what: str) -> int:
    """The number of examples in a batch. Raises SpectraError."""
    leaves = tree_leaves((x, y))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        came = next(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor))
        raise SpectraError(f"`data`: {what} holds a {came}; give tensors")
    sizes = {tuple(leaf.shape[:1]) for leaf in leaves}
    if len(sizes) != 1 or () in sizes:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise SpectraError(
            f"`data`: x and y of {what} have shapes {shapes}; give them one and the same first dimension"
        )
    return sizes.pop()[0]


def chosen(batches: list[Batch], samples: int, seed: int) -> list[Batch]:
    """Choose `samples` examples by the seed, and leave them in their batches. Raises SpectraError."""
    total = sum(map(len, batches))
    if not 1 <= samples <= total:
        raise SpectraError(f"`samples`: {samples} of {total} examples; choose from 1 to {total}")
    picked = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    found, first = [], 0
    for batch in batches:
        own = picked[(picked >= first) & (picked < first + len(batch))] - first
        first += len(batch)
        if len(own):
            found.append(batch.part(own.to(batch.indices.device)))
    return found


def recut(batches: list[Batch], size: int) -> list[Batch]:
    """The examples in their order, in batches of `size`. Raises SpectraError where they cannot be joined."""
    from spectra.curvature.engine.batches import joined

    try:
        whole = joined(batches)
    except Exception as error:
        text = f"the batches cannot be joined ({describe(error)})"
        raise SpectraError(f"`batch_size`: {text}; leave it out, so that they stay as they are") from error
    return cut_batches(whole.inputs, whole.targets, whole.indices, size)
