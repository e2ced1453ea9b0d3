"""The page README.md and its figures, from the tables that a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.fisher_is_hessian import check, figures, findings
from scripts.fisher_is_hessian.tables import read

TEXT = Path(__file__).with_name("page.md")


def save(out: Path, record: dict[str, Any]) -> None:
    """`record`: what the checks have found and, of a whole run, how it was made."""
    distances, points, teachers = (read(out / f"{name}.csv") for name in ("distances", "points", "teacher"))
    figures.save_all(distances, points, teachers, out)
    text = TEXT.read_text().format(
        **findings.numbers(distances, points, teachers),
        end=findings.at_the_end(distances, points),
        theory=findings.against_theory(distances, points, teachers),
        checks=checked(record["checks"]),
        made=made(record["made"]) if "made" in record else "",
    )
    (out / "README.md").write_text(text)


def checked(checks: dict[str, Any]) -> str:
    whole, estimated = checks["whole"], checks["estimated"]
    if not (whole and estimated):
        return ""
    apart = findings.short(max(row["error"] for row in whole))
    near, far = (100 * check.within(estimated, k) for k in (1, 2))
    return (
        "All matrices in the tables are dense and exact. They were computed from Jacobians of single examples,\n"
        "without products of `spectra`. At two points, six of them were also computed with these products: the\n"
        f"largest relative difference is {apart}. At two points, {len(estimated)} estimates of `spectra compare` with\n"
        f"16 probes were compared with the exact numbers of six pairs: {near:.0f} % lie within one standard error,\n"
        f"{far:.0f} % within two."
    )


def made(how: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in how["versions"].items())
    uncommitted = " and changes not yet committed" if how["dirty"] else ""
    return (
        f"on {how['date']} from commit `{how['commit'][:10]}`{uncommitted}: {how['cpu_seconds'] / 60:.0f} minutes of\n"
        f"one core ({how['seconds'] / 60:.0f} by the clock) on {how['machine']}, {how['cores']} cores, "
        f"{how['threads']} in use;\nPython {how['python']}, {versions}."
    )
