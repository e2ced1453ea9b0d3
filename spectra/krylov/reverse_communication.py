"""Reverse communication: a method yields the vectors to be multiplied, and is sent their products (as ARPACK does it).

The method does not know how products are computed, so the runs of several methods may share one product.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from spectra.operator import SymmetricOperator

# Yields vectors to be multiplied, (n,) or (n, j), is sent None first and then the products, and returns an answer.
ReverseCommunication = Generator[Tensor, Any, Any]


def serve_products(run: ReverseCommunication, operator: SymmetricOperator) -> Any:
    """Run a method to its end, multiplying by `operator`, and return its answer."""
    try:
        wanted = run.send(None)
        while True:
            product = (operator @ wanted).detach()  # the matrix may require gradients
            del wanted  # before the next one: each may take a large part of the device's memory
            wanted = run.send(product)
            del product
    except StopIteration as end:
        return end.value


def serve_jointly(
    runs: Sequence[ReverseCommunication],
    multiply: Callable[[dict[int, Tensor]], Mapping[int, Tensor]],
    report: Callable[[int], None],
    most: int | None = None,
) -> list[Any]:
    """Run methods together, one joint product a step, and return their answers.

    Args:
        runs: the methods.
        multiply: computes the products of all requested vectors, given by the index of the run.
        report: called after each joint product with the number of runs that have not finished.
        most: the largest number of runs that are active at a time; None: all.
    """
    answers: dict[int, Any] = {}
    products: dict[int, Tensor | None] = {}
    following = 0
    while len(answers) < len(runs):
        while following < len(runs) and (most is None or len(products) < most):
            products[following] = None
            following += 1
        wanted = {}
        for index, product in products.items():
            try:
                wanted[index] = runs[index].send(product)
            except StopIteration as end:
                answers[index] = end.value
        products = dict(multiply(wanted)) if wanted else {}
        report(len(runs) - len(answers))
    return [answers[index] for index in range(len(runs))]


def with_products(
    run: ReverseCommunication, multiply: Callable[[Tensor], ReverseCommunication]
) -> ReverseCommunication:
    """Run a method with products by `multiply`, which uses reverse communication itself, and return its answer."""
    product = None
    while True:
        try:
            wanted = run.send(product)
        except StopIteration as end:
            return end.value
        product = yield from multiply(wanted)
