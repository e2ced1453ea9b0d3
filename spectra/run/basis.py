"""Where the bases of a run lie: settled once the problem is loaded, kept for a resumed run, and told."""

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
    """The vectors of a problem's matrices, as they are sharded over processes."""

    @property
    def mesh(self) -> Any:
        """The processes over which vectors are sharded, or None."""
        return getattr(self.problem.processes, "mesh", None)


def name_of(place: Placement, space: Shaped) -> str:
    """The place as the argument `basis` names it: `device`, or `host` where that is another."""
    return "device" if place.device.type == space.device.type else "host"


def told(place: Placement, space: Shaped, asked: str) -> Iterator[str]:
    """Lines on a basis that lies on the host, or that memory keeps small, for the reader of a result."""
    each = in_units(vector_bytes(space))
    if name_of(place, space) == "host":
        held = counted(fitting_vectors(space), "vector")
        why = "as asked" if asked == "host" else f"as a quarter of the device's memory holds {held} of {each}"
        yield f"the Lanczos basis is in host memory, {why}"
    if place.vectors < place.usual:
        yield (
            f"memory holds {counted(place.vectors, 'basis vector')} of {each}, and restarts are frequent below "
            f"{place.usual}: expect more products, and less certainty that no eigenvalue is missed"
        )
