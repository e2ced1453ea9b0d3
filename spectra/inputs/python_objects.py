"""Use the caller's own objects in place of names: a module, a loss of PyTorch or a function, batches and tensors.

None of them is changed. A module that needs another dtype or device is copied.
"""

from __future__ import annotations

import copy
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset

from spectra.errors import SpectraError, describe
from spectra.inputs.batches import Batches, collate_fn_of
from spectra.inputs.data import graph_data
from spectra.inputs.data_module import training_loader
from spectra.inputs.examples import Data, is_arrays, read
from spectra.inputs.graphs import are_graphs
from spectra.inputs.items import CannotSplit, ItemRequirements, split_item
from spectra.inputs.loaders import loaded
from spectra.inputs.loss import loss_of
from spectra.inputs.model import Module, cast, refuse_uninitialised, renormalise_embeddings, uncompiled
from spectra.inputs.seeding import seeded
from spectra.inputs.sources import half_notes
from spectra.problem.losses import Loss

GIVEN = "given in Python"  # in records, for an object without a name


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of a module's first floating parameter, preferably one that requires gradients."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    first = next((p for p in floating if p.requires_grad), floating[0] if floating else torch.empty(0))
    return first.device, first.dtype


def own_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """Return the caller's module on a device and in a dtype, with notes on what was changed.

    It is the caller's own object if nothing has to change, else a copy. Raises SpectraError.
    """
    model = unwrapped(model)
    name = type(model).__name__
    refuse_uninitialised(model, name)
    tensors = [*model.parameters(), *model.buffers()]
    moved = any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors)
    limited = any(getattr(module, "max_norm", None) is not None for module in model.modules())
    compiled = any(module._compiled_call_impl or hasattr(module, "_orig_mod") for module in model.modules())
    inference = any(t.is_inference() for t in tensors)  # made under torch.inference_mode(), without derivatives
    if not (moved or limited or compiled or inference):
        return model, []
    half = half_notes(parameter.dtype for parameter in model.parameters())
    try:
        model = uncompiled(copied(model))
    except Exception as error:
        way_out = "leave `dtype` and `device` out" if moved else "remove what cannot be copied from the module"
        raise SpectraError(f"`model`: {name} cannot be copied ({describe(error)}); {way_out}") from error
    return cast(model, device, dtype), [*half, *renormalise_embeddings(model)]


def copied(model: Module) -> Module:
    """Make a deep copy of a module, in which the parameters of a TorchScript module are leaves too."""
    if not isinstance(model, torch.jit.ScriptModule):
        return copy.deepcopy(model)
    with torch.no_grad():  # else the copied parameters depend on the original ones in autograd
        duplicate = copy.deepcopy(model)
    for parameter, own in zip(duplicate.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return duplicate


def called_program(model: Any) -> Any:
    """Return the module of an ExportedProgram, and any other model unchanged."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


def unwrapped(model: nn.Module) -> nn.Module:
    """Remove the wrappers of torch.compile and data parallelism. Raises SpectraError where parameters are sharded."""
    if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
        return unwrapped(compiled)
    if isinstance(model, DataParallel | DistributedDataParallel):
        return unwrapped(model.module)
    fully_sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    marks = ("full_tensor", "ds_tensor")  # attributes of a DTensor, and of DeepSpeed's ZeRO-3
    if fully_sharded or any(hasattr(p, mark) for p in model.parameters() for mark in marks):
        raise SpectraError("`model`: its parameters are sharded over processes; save checkpoints, and analyse those")
    return model


def own_loss(loss: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Loss:
    """Convert an object to a Loss: losses of PyTorch become ours, which know their distribution, others a CustomLoss.

    Args:
        loss: a loss of ours, returned unchanged; one of PyTorch (`spectra.inputs.torch_losses`); a module or function
            of (output, target) that returns values of the examples or the batch's mean; or one of (output) that returns
            the distribution of the targets.
        device: the device to which a copy of a loss module is moved; None: that of the module.
        dtype: the dtype to which its floating tensors are cast; None: their own.

    Raises:
        SpectraError: `loss` is a class, or is not callable.
    """
    if isinstance(loss, type) or not may_be_loss(loss):
        if isinstance(loss, type):
            raise SpectraError(f"`loss`: {loss.__name__} is not a loss; call it first: {loss.__name__}()")
        came = "None" if loss is None else getattr(loss, "__name__", type(loss).__name__)
        raise SpectraError(f"`loss`: expected a loss or a function (output, target), got {came}")
    if isinstance(loss, Loss):
        return loss
    bare = loss.func if isinstance(loss, partial) else loss
    name = getattr(bare, "__name__", type(bare).__name__)
    if isinstance(bare, nn.Module):
        bare = copy.deepcopy(bare)
        loss = partial(bare, *loss.args, **loss.keywords) if isinstance(loss, partial) else bare
    return loss_of(loss, name, device, dtype)


def may_be_loss(value: Any) -> bool:
    """Whether a value is a loss of ours, or is callable."""
    return isinstance(value, Loss) or callable(value)


def own_data(
    data: Any, samples: int | None, seed: int, batch_size: int | None, wanted: ItemRequirements | None = None
) -> Data | Batches:
    """Read the examples of a data object: as one piece from tensors or a data set, else in the batches of a loader.

    Args:
        data: tensors or arrays of all examples, as a pair (x, y) or a mapping; a map-style data set of items, or a
            list of examples, each with one number as its label; a DataLoader or another iterable of batches, read once;
            or a list of `Batch`. `split_item` describes the forms of items and batches.
        samples: the number of examples to choose with the seed; None for all.
        seed: the seed of the choice, and of loaders that shuffle.
        batch_size: the size of new batches; None keeps those of the data.
        wanted: how an item is divided into inputs and targets.

    Raises:
        SpectraError: the data are empty, have another form, are not finite, or change when they are read again.
    """
    name, wanted = data_name(data), wanted or ItemRequirements()
    data = training_loader(data, name)
    if isinstance(data, Data):
        data = (data.inputs, data.targets)
    if are_graphs(data):
        return graph_data(data, samples, seed, name, wanted)
    if is_arrays(data, wanted) or is_data_set(data) or are_examples(data, wanted):
        with seeded(seed):
            source = tuple(data) if is_pair(data) else data
            return read(source, samples, seed, None, name, wanted, collate_fn_of(data), batch_size)
    return loaded(data, samples, seed, batch_size, wanted, name)


def data_name(data: Any) -> str:
    """Name a data object for a record."""
    return "tensors" if is_pair(data) else type(data).__name__


def is_pair(data: Any) -> bool:
    """Whether data are a pair (x, y) of all examples, rather than two batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and is_arrays(data, ItemRequirements())


def is_data_set(data: Any) -> bool:
    """Whether data are a map-style data set, of PyTorch or of the package datasets."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return hasattr(data, "column_names") and hasattr(data, "features") and hasattr(data, "__getitem__")


def are_examples(data: Any, wanted: ItemRequirements) -> bool:
    """Whether data are a list of examples, each with one number as its label, rather than a list of batches."""
    if wanted.whole or wanted.trees or not (isinstance(data, list) and data):
        return False
    try:
        x, label = split_item(data[0], wanted)
    except CannotSplit:
        return False
    one = isinstance(label, Number) or getattr(label, "ndim", None) == 0
    return one and any(isinstance(leaf, torch.Tensor | np.ndarray) for leaf in tree_leaves(x))
