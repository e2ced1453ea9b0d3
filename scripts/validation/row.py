"""One row of the gallery: what was published, what we find with its error, and whether the two agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A number that was published or follows from a closed form, beside ours."""

    name: str  # what it is a number of
    source: str  # who has published it, and where in the text
    expected: float
    found: float
    error: float  # ours: standard error, residual or rounding
    finite: float = 0.0  # how far the theory, of infinite size, may be off at this one
    note: str = ""  # the set-up, and the reason where the two do not agree
    products: int = 0  # matrix-vector products spent
    relation: str = "="  # of what is found to what is published; < and > where that is a bound

    @property
    def agrees(self) -> bool:
        """Whether the relation holds: equal to two errors and what the size accounts for, or two errors apart."""
        apart = self.found - self.expected
        if self.relation == "=":
            return bool(abs(apart) <= 2 * self.error + self.finite)
        return bool((apart if self.relation == ">" else -apart) > 2 * self.error)
