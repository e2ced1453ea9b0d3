"""Objects of the caller's own in place of names: a module, a loss of PyTorch or a function, batches and tensors.

None of them is changed. A module that has to be in another dtype or on another device is copied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset

from spectra.errors import SpectraError, describe
from spectra.inputs.batches import Batches, own_collate
from spectra.inputs.chance import seeded
from spectra.inputs.data import graph_data
from spectra.inputs.examples import Data, is_arrays, read
from spectra.inputs.graphs import are_graphs
from spectra.inputs.items import Wanted
from spectra.inputs.loaders import loaded
from spectra.inputs.model import Module, cast, refuse_unmade, renormalise_embeddings, uncompiled
from spectra.inputs.sources import half_notes
from spectra.inputs.user_loss import user_loss
from spectra.problem.cross_entropy import CrossEntropy
from spectra.problem.losses import BinaryCrossEntropy, Loss, MeanSquaredError

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
    half = half_notes(parameter.dtype for parameter in model.parameters())
    try:
        model = uncompiled(copied(model))
    except Exception as error:
        way_out = "leave dtype and device out" if moved else "take that out of the module"
        raise SpectraError(f"`model`: {name} cannot be copied ({describe(error)}); {way_out}") from error
    return cast(model, device, dtype), [*half, *renormalise_embeddings(model)]


def copied(model: Module) -> Module:
    """A deep copy of a module. The parameters of a TorchScript module are leaves in it, as they are in the original."""
    if not isinstance(model, torch.jit.ScriptModule):
        return copy.deepcopy(model)
    with torch.no_grad():  # else they are derived from the original's
        copy_of_it = copy.deepcopy(model)
    for parameter, own in zip(copy_of_it.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return copy_of_it


def called_program(model: Any) -> Any:
    """The module of a program of torch.export; any other model as it is."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


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
        loss: a loss of ours, as it is; torch.nn.CrossEntropyLoss, MSELoss or BCEWithLogitsLoss; another module or
            function of (output, target) that returns values of the examples, or the batch's mean.
        device, dtype: where a module with tensors of its own is needed.

    Raises:
        SpectraError: a class, something that cannot be called, or a sum over the batch.
    """
    if isinstance(loss, type) or not may_be_loss(loss):
        came = getattr(loss, "__name__", type(loss).__name__)
        way_out = f"call it first: {came}()" if isinstance(loss, type) else "give a loss or a function (output, target)"
        raise SpectraError(f"`loss`: {came} is no loss; {way_out}")
    if isinstance(loss, Loss):
        return loss
    if getattr(loss, "reduction", "mean") == "sum":
        raise SpectraError("`loss`: its reduction is sum, which would depend on the batches; make it none or mean")
    if loss is F.cross_entropy:
        loss = nn.CrossEntropyLoss()
    if type(loss) is nn.CrossEntropyLoss:
        weight = None if loss.weight is None else loss.weight.detach().double().cpu()
        return CrossEntropy(weight, loss.ignore_index, loss.label_smoothing, class_dim=1)
    if loss is F.mse_loss or type(loss) is nn.MSELoss:
        return MeanSquaredError()
    plain_bce = type(loss) is nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None
    if loss is F.binary_cross_entropy_with_logits or plain_bce:
        return BinaryCrossEntropy()
    name = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, nn.Module):
        loss = cast(copy.deepcopy(loss), device, dtype)
    return user_loss(loss, name)


def may_be_loss(value: Any) -> bool:
    """Whether a value is a loss of ours, or can be called as a function of (output, target)."""
    return isinstance(value, Loss) or callable(value)


def loss_name(loss: Loss) -> str:
    """The name of a loss on the command line, with its options; that of a custom loss is its own."""
    name = getattr(loss, "name", "cross_entropy")
    if not isinstance(loss, CrossEntropy):
        return name
    options = {
        "label_smoothing": loss.label_smoothing or None,
        "ignore_index": None if loss.ignore_index == CrossEntropy.ignore_index else loss.ignore_index,
        "weight": None if loss.class_weights is None else ",".join(map(repr, loss.class_weights.tolist())),
        "class_dim": None if loss.class_dim == 1 else loss.class_dim,  # 1 is what PyTorch's own loss means
        "shift": "true" if loss.shift else None,
    }
    query = "&".join(f"{key}={value}" for key, value in options.items() if value is not None)
    return f"{name}?{query}" if query else name


def own_data(
    data: Any, samples: int | None, seed: int, batch_size: int | None, wanted: Wanted | None = None
) -> Data | Batches:
    """The examples of an object: in one piece where they come as tensors or one by one, else in the batches in which
    they come.

    Args:
        data: tensors or arrays of all examples, as a pair (x, y) or a mapping; a map-style data set of items; a
            DataLoader or another iterable of batches, read once; or a list of `Batch`. Items and batches are divided
            as `divided` says.
        samples: the number of examples to choose by the seed; None for all.
        seed: the seed of the choice, and of loaders that shuffle.
        batch_size: the size of batches to be made anew; None leaves them.
        wanted: what the loss takes of an item.

    Raises:
        SpectraError: no examples, of another form, or not finite; or items that change between two reads.
    """
    name, wanted = data_name(data), wanted or Wanted()
    if isinstance(data, Data):
        data = (data.inputs, data.targets)
    if are_graphs(data):
        return graph_data(data, samples, seed, name, wanted)
    if is_arrays(data, wanted) or is_data_set(data):
        with seeded(seed):
            source = tuple(data) if is_pair(data) else data
            return read(source, samples, seed, None, name, wanted, own_collate(data), batch_size)
    return loaded(data, samples, seed, batch_size, wanted, name)


def data_name(data: Any) -> str:
    """The name of the data in a record."""
    return "tensors" if is_pair(data) else type(data).__name__


def is_pair(data: Any) -> bool:
    """Whether data are x and y of all examples, and not two batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and is_arrays(data, Wanted())


def is_data_set(data: Any) -> bool:
    """Whether data are a map-style data set of items: of PyTorch, or of the package datasets."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return hasattr(data, "column_names") and hasattr(data, "features") and hasattr(data, "__getitem__")
