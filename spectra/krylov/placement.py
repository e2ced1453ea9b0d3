"""The choice of the memory, of the device or its host, that holds the vectors of a basis, and how many fit there.

A Lanczos basis on the host is orthogonalised there (`spectra.krylov.lanczos`), and eigenvectors from it stay there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spectra.arguments import require_choice
from spectra.errors import SpectraError
from spectra.files import in_units
from spectra.krylov.blocks import fitting_vectors, vector_bytes
from spectra.memory import basis_place, host_share, memory_of, memory_share
from spectra.operator import Shaped

BASES = ("auto", "device", "host")
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """The device that holds a basis, and the number of vectors that fit there."""

    device: torch.device
    vectors: int
    usual: int = 0  # vectors of the basis if memory does not limit it


def placement(operator: Shaped, usual: int, choice: str = "auto") -> Placement:
    """Choose the memory for a basis of `usual` vectors, or fewer if memory limits it.

    `auto` is the choice for the whole run, if there is one. Otherwise it is the device if its share of memory holds
    `usual` vectors, or at least as many as the host's share; else it is the host.
    """
    require_choice("basis", choice, BASES)
    choice = basis_place() if choice == "auto" else choice
    own = Placement(operator.device, fitting_vectors(operator), usual)
    if operator.device.type == HOST.type or choice == "device":
        return own
    host = Placement(HOST, host_share() // vector_bytes(operator), usual)
    return host if choice == "host" or own.vectors < min(usual, host.vectors) else own


def most_room(operator: Shaped) -> int:
    """The bytes of the largest share of memory that a basis may use."""
    choice, own = basis_place(), memory_share(operator.device)
    if operator.device.type == HOST.type or choice == "device":
        return own
    return host_share() if choice == "host" else max(own, host_share())


def fits(operator: Shaped, place: Placement, vectors: int) -> bool:
    """Whether this number of vectors fits the share of a place, or the memory that products leave free there."""
    return vectors <= place.vectors or vectors * vector_bytes(operator) <= free_for_basis(operator, place)


def free_for_basis(operator: Shaped, place: Placement) -> float:
    """The bytes that are free at a place, less the share of products if they are computed there."""
    products = memory_share(place.device) if place.device.type == operator.device.type else 0
    return max(0, memory_of(place.device)[1] - products)


def refuse_basis(operator: Shaped, place: Placement, least: int, argument: str, way_out: str) -> None:
    """Raise SpectraError if not even the smallest basis, of `least` vectors, fits the free memory.

    The error names the `argument` that determines its size, and the `way_out`.
    """
    if not fits(operator, place, least):
        each, free, on_host = vector_bytes(operator), free_for_basis(operator, place), place.device.type == HOST.type
        helps = not on_host and host_share() >= least * each
        raise SpectraError(
            f"{argument}: the smallest basis, {least} vectors of {in_units(each)}, takes {in_units(least * each)}, and "
            f"{'the host' if on_host else place.device} has {in_units(free)} free for it; "
            f"{'give `basis` host, ' if helps else ''}{way_out}"
        )
