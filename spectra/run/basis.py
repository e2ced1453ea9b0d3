"""The memory that holds the Lanczos bases of a run, on the device or the host, and notes about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectra.files import in_units
from spectra.krylov.blocks import fitting_vectors, vector_bytes
from spectra.krylov.placement import Placement
from spectra.operator import Shaped
from spectra.problem.space import Space
from spectra.wording import counted


class ShardedSpace(Space):
    """The vectors of a problem's matrices, sharded over processes."""

    @property
    def mesh(self) -> Any:
        """The processes over which vectors are sharded, or None."""
        return getattr(self.problem.processes, "mesh", None)


def name_of(place: Placement, space: Shaped) -> str:
    """The place as in the argument `basis`: `device`, or `host` if that is another device."""
    return "device" if place.device.type == space.device.type else "host"


def notes(place: Placement, space: Shaped, requested: str) -> Iterator[str]:
    """Yield notes for the reader of a result if the basis is in host memory, or small for lack of memory."""
    each = in_units(vector_bytes(space))
    if name_of(place, space) == "host":
        held = counted(fitting_vectors(space), "vector")
        why = (
            "as requested" if requested == "host" else f"since a quarter of the device's memory holds {held} of {each}"
        )
        yield f"the Lanczos basis is in host memory, {why}"
    if place.vectors < place.usual:
        yield (
            f"memory holds only {counted(place.vectors, 'basis vector')} of {each}, fewer than {place.usual}, so "
            "restarts are frequent: expect more products, and less certainty that no eigenvalue is missed"
        )
