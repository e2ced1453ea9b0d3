"""Each tool's product behind one face: vector (n,) -> product, as the tool's own documentation would make it.

PyHessian has two ways: of one batch it keeps the graph of the gradient; of a loader it differentiates anew each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.benchmarks.problems import Case
from spectra.curvature.operator import Curvature

Product = Callable[[Tensor], Tensor | Iterable[Tensor]]

MANY = 100_000  # products: a row is of products, after whatever set-up makes them cheapest
COPIES: list[Case] = []  # whose models PyHessian has differentiated
SPECTRA = "spectra"
ONE_BATCH, LOADER = "PyHessian, one batch", "PyHessian, loader"
CURVLINOPS, EIGENTHINGS = "curvlinops", "hessian-eigenthings"


def flat(product: Tensor | Iterable[Tensor]) -> Tensor:
    """The vector (n,) that a tool's answer is."""
    return product if isinstance(product, Tensor) else torch.cat([part.detach().flatten() for part in product])


def parts(case: Case, vector: Tensor) -> list[Tensor]:
    cut = vector.split([p.numel() for p in case.parameters])
    return [part.view_as(p) for part, p in zip(cut, case.parameters, strict=True)]


def gradient(case: Case) -> Tensor:
    """The unit of cost: forward and backward of the mean loss over all batches, in plain PyTorch."""
    total = torch.zeros(case.size, device=case.parameters[0].device, dtype=case.parameters[0].dtype)
    for x, y in case.batches:
        loss = case.criterion(case.model(x), y) * (len(x) / case.examples)
        total += flat(torch.autograd.grad(loss, case.parameters))
    return total


def pyhessian(case: Case, loader: bool) -> Any:
    from pyhessian import hessian

    given = {"dataloader": case.batches} if loader else {"data": case.merged()}
    own = case.copy()
    COPIES.append(own)
    return hessian(own.model, case.criterion, **given, cuda=case.batches[0][0].is_cuda)


def release() -> None:
    """Break the circles of gradient and graph that PyHessian leaves: 15 GB at the end of a run, a burden to all."""
    while COPIES:
        for p in COPIES.pop().model.parameters():
            p.grad = None


def pyhessian_product(case: Case, matrix: str, loader: bool) -> Product | None:
    if matrix != "hessian":
        return None
    from pyhessian.utils import hessian_vector_product

    tool = pyhessian(case, loader)
    if loader:
        return lambda vector: tool.dataloader_hv_product(parts(case, vector))[1]
    return lambda vector: hessian_vector_product(tool.gradsH, tool.params, parts(case, vector))


def curvlinops(case: Case, matrix: str) -> Any:
    import curvlinops

    kinds = {
        "hessian": curvlinops.HessianLinearOperator,
        "ggn": curvlinops.GGNLinearOperator,
        "fisher-mc": curvlinops.FisherMCLinearOperator,
        "fisher-empirical": curvlinops.EFLinearOperator,
    }
    own = case.copy()
    return (
        kinds[matrix](own.model, own.criterion, own.parameters, own.batches) if offered(case, matrix, kinds) else None
    )


def offered(case: Case, matrix: str, kinds: Iterable[str]) -> bool:
    """Whether a peer has the matrix; those of the gradients of single examples take a sequence for one, or a class."""
    of_examples = matrix in ("fisher-mc", "fisher-empirical")
    return matrix in kinds and not (of_examples and case.batches[0][1].ndim > 1)


def curvlinops_product(case: Case, matrix: str) -> Product | None:
    operator = curvlinops(case, matrix)
    return operator and operator.__matmul__


def eigenthings(case: Case, matrix: str) -> Any:
    from hessian_eigenthings import loss_fns, operators

    own, loss = case.copy(), case.criterion
    if matrix == "hessian":
        return operators.HessianOperator(own.model, own.batches, loss_fns.supervised_loss(loss))
    if matrix == "ggn":
        of_output = loss_fns.supervised_loss_of_output(loss)
        return operators.GGNOperator(own.model, own.batches, loss_fns.supervised_forward, of_output)
    if offered(case, matrix, ["fisher-empirical"]):
        per_sample = loss_fns.supervised_per_sample_loss(loss)
        return operators.EmpiricalFisherOperator(own.model, own.batches, per_sample)
    return None


def eigenthings_product(case: Case, matrix: str) -> Product | None:
    operator = eigenthings(case, matrix)
    return operator and operator.matvec


def spectra_product(case: Case, matrix: str) -> Product:
    operator = Curvature(case.problem(), matrix, products=MANY)
    operator.prepare()
    return operator.__matmul__


TOOLS: dict[str, Callable[[Case, str], Product | None]] = {
    SPECTRA: spectra_product,
    ONE_BATCH: lambda case, matrix: pyhessian_product(case, matrix, loader=False),
    LOADER: lambda case, matrix: pyhessian_product(case, matrix, loader=True),
    CURVLINOPS: curvlinops_product,
    EIGENTHINGS: eigenthings_product,
}


@dataclass
class Attempt:
    """A tool made ready for a matrix, or why not; `helped`: only with other kernels of attention, set by hand."""

    product: Product | None = None
    setup_seconds: float = 0.0  # until the first product can be made
    error: str | None = None  # the first line of it
    helped: bool = False


def attempt(name: str, case: Case, matrix: str, vector: Tensor) -> Attempt | None:
    """The tool with one product made; None where it does not offer the matrix.

    Where that fails, it is tried once more with the attention kernels that have a second derivative.
    """
    first = None
    for helped in (False, True):
        try:
            with math_attention() if helped else nullcontext():
                start = time.perf_counter()
                product = TOOLS[name](case, matrix)
                setup = time.perf_counter() - start
                if product is None:
                    return None
                product(vector)
            return Attempt(under_math_attention(product) if helped else product, setup, first, helped)
        except Exception as error:
            first = first or first_line(error)
    return Attempt(error=first)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by kernels that have a second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def under_math_attention(product: Product) -> Product:
    def wrapped(vector: Tensor):
        with math_attention():
            return product(vector)

    return wrapped
