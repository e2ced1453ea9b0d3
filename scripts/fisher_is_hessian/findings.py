"""The numbers of the page: what was found at the last step, and what theory says beside what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from scripts.fisher_is_hessian.tables import Row, pick, slope
from scripts.fisher_is_hessian.tasks import CLASSES, LABELS, LOSSES

TITLES = {"clean": "clean", "random": "20 % random", "teacher": "drawn by a teacher"}
SHORT = {"cross_entropy": "cross entropy", "mse": "mse"}
FITTED = ("clean", "random")  # kinds of labels that the network comes to fit
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LATE = 100  # steps from which on power laws in the residuals are fitted


def at_the_end(distances: list[Row], points: list[Row]) -> str:
    """A table: the last step, each number the median over seeds."""
    last = max(row["step"] for row in points)
    heads = (
        "loss",
        "labels",
        "residual",
        "\\|H - G\\| / \\|H\\|",
        "\\|H - E\\| / \\|H\\|",
        "the same at best scale",
        "\\|F - E\\| / \\|F\\| at best scale",
        "best scale of E to F",
        "cosine of H with J'J",
        "with B",
        "with gg'",
    )
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for loss in LOSSES:
        for labels in LABELS:
            which = {"loss": loss, "labels": labels, "step": last}
            residual = "mean_one_minus_p" if loss == "cross_entropy" else "rms_residual"

            def of(a: str, b: str, number: str, which=which) -> str:
                return told(row[number] for row in pick(distances, a=a, b=b, **which))

            cells = [
                SHORT[loss],
                TITLES[labels],
                ("1 - p " if loss == "cross_entropy" else "rms ")
                + told(row[residual] for row in pick(points, **which)),
                of("hessian", "ggn", "distance"),
                of("hessian", "fisher-empirical", "distance"),
                of("hessian", "fisher-empirical", "distance_at_best_scale"),
                of("fisher", "fisher-empirical", "distance_at_best_scale"),
                of("fisher", "fisher-empirical", "best_scale"),
                of("hessian", "jacobian-outer", "cosine"),
                of("hessian", "fisher-batch", "cosine"),
                of("hessian", "gradient-outer", "cosine"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against_theory(distances: list[Row], points: list[Row], teachers: list[Row]) -> str:
    lines = ["| theory | found (least to largest of all seeds) |", "| --- | --- |"]
    for theory, found in theory_rows(distances, points, teachers):
        lines.append(f"| {theory} | {found} |")
    return "\n".join(lines)


def theory_rows(distances: list[Row], points: list[Row], teachers: list[Row]) -> Iterable[tuple[str, str]]:
    last = max(row["step"] for row in points)
    identical = max(row["distance"] for row in pick(distances, a="ggn", b="fisher"))
    yield "GGN = Fisher for both losses", f"largest distance of all points {short(identical)} (rounding of 1 - p)"

    gaps = {
        (r["loss"], r["labels"], r["seed"], r["step"]): r["distance"] for r in pick(distances, a="hessian", b="ggn")
    }
    yield (
        "mse: \\|H - G\\| is bounded by the residuals, so the gap closes as they vanish: slope 1 or more",
        "slope " + ranged(slopes(points, "mse", "rms_residual", lambda row: gaps[key(row)])),
    )
    found = slopes(points, "mse", "rms_residual", lambda row: row["norm fisher-empirical"])
    yield "mse: \\|E\\| shrinks as the square of the residuals", "slope " + ranged(found)
    for matrix, name, power in (("hessian", "H", 1), ("ggn", "G", 1), ("fisher-empirical", "E", 2)):
        found = slopes(points, "cross_entropy", "mean_one_minus_p", lambda row, m=matrix: row[f"norm {m}"])
        yield f"cross entropy: \\|{name}\\| shrinks as (1 - p)^{power}", "slope " + ranged(found)
    gap = slopes(points, "cross_entropy", "mean_one_minus_p", lambda row: gaps[key(row)])
    ends = {s: [gaps["cross_entropy", r["labels"], r["seed"], s] for r in ends_of(points, s)] for s in (LATE, last)}
    yield (
        "cross entropy: the relative gap of H and G need not close",
        f"slope {ranged(gap)}; {ranged(ends[LATE])} at step {LATE}, {ranged(ends[last])} at step {last:,}",
    )
    for a, b, name in (("fisher", "fisher-empirical", "E nears F"), ("hessian", "ggn", "H nears G")):
        found = ", ".join(f"{SHORT[loss]} {ranged(sampling_slopes(teachers, loss, a, b))}" for loss in LOSSES)
        yield f"at the teacher's parameters {name} as N^(-1/2) with N labels", f"slope {found}"
    most = max(row["examples"] for row in teachers)
    narrow = [row for row in pick(teachers, loss="mse", a="fisher", examples=most) if row["noise"] != CLASSES / 2]
    yield (
        f"mse, noise of variance 1/2 in place of K/2: E = F/K, best scale {CLASSES}, distance 1 - 1/K",
        f"with {most:,} labels best scale {ranged(r['best_scale'] for r in narrow)}, distance "
        f"{ranged(r['distance'] for r in narrow)}, at best scale {ranged(r['distance_at_best_scale'] for r in narrow)}",
    )
    ended = pick(points, labels="teacher", step=last)
    whole, small = ([row[f"trace {m}"] / row["trace fisher-empirical"] for row in ended] for m in OUTER)
    yield (
        "stationary point: tr gg' vanishes, tr B stays tr E / 10 for batches of 10",
        f"teacher's labels, last step: tr gg' / tr E {ranged(whole)}, tr B / tr E {ranged(small)}",
    )


OUTER = ("gradient-outer", "fisher-batch")


def key(row: Row) -> tuple:
    return row["loss"], row["labels"], row["seed"], row["step"]


def ends_of(points: list[Row], step: int) -> list[Row]:
    return [row for row in pick(points, loss="cross_entropy", step=step) if row["labels"] in FITTED]


def slopes(points: list[Row], loss: str, residual: str, number: Callable[[Row], float]) -> list[float]:
    """Of each run that comes to fit its labels, from step LATE on."""
    runs = [pick(points, loss=loss, labels=labels, seed=seed) for labels in FITTED for seed in seeds(points)]
    late = [[row for row in run if row["step"] >= LATE] for run in runs]
    return [slope([row[residual] for row in run], [number(row) for row in run]) for run in late]


def sampling_slopes(teachers: list[Row], loss: str, a: str, b: str) -> list[float]:
    found = []
    for seed in seeds(teachers):
        rows = [r for r in pick(teachers, loss=loss, a=a, b=b, seed=seed) if r.get("noise", CLASSES / 2) == CLASSES / 2]
        found.append(slope([row["examples"] for row in rows], [row["distance"] for row in rows]))
    return found


def seeds(rows: list[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def told(numbers: Iterable[float]) -> str:
    return short(median(numbers))


def ranged(numbers: Iterable[float]) -> str:
    numbers = sorted(numbers)
    ends = [short(number) for number in (numbers[0], numbers[-1])]
    return " to ".join(dict.fromkeys(ends))


def short(number: float) -> str:
    """Two digits, beyond 0.001 and 1,000 with a power of ten."""
    if 1e-3 <= abs(number) < 1e3 or not number:
        return f"{number:.2g}"
    digits, power = f"{number:.1e}".split("e")
    return f"{digits}·10{str(int(power)).translate(SUPERSCRIPTS)}"


def numbers(distances: list[Row], points: list[Row], teachers: list[Row]) -> dict[str, str]:
    """What the answer cites."""
    last, most = max(row["step"] for row in points), max(row["examples"] for row in teachers)

    def found(a: str, b: str, number: str, step: int = last, **which) -> list[float]:
        return [row[number] for row in pick(distances, a=a, b=b, step=step, **which)]

    def fitted(a: str, b: str, number: str, step: int = last, **which) -> str:
        return ranged(x for labels in FITTED for x in found(a, b, number, step, labels=labels, **which))

    drawn = {"labels": "teacher"}
    by_model = [row for row in pick(teachers, loss="mse", a="hessian", examples=most) if row["noise"] == CLASSES / 2]
    return {
        "most": f"{most:,}",
        "mse_start": fitted("hessian", "ggn", "distance", 0, loss="mse"),
        "mse_end": fitted("hessian", "ggn", "distance", loss="mse"),
        "teacher_gap_mse": ranged(row["distance"] for row in by_model),
        "left": ranged(row["mean_one_minus_p"] for row in ends_of(points, last)),
        "ce_end": fitted("hessian", "ggn", "distance", loss="cross_entropy"),
        "ce_teacher": ranged(found("hessian", "ggn", "distance", loss="cross_entropy", **drawn)),
        "ef_ce": ranged(found("fisher", "fisher-empirical", "distance", loss="cross_entropy", **drawn)),
        "ef_mse": ranged(found("fisher", "fisher-empirical", "distance", loss="mse", **drawn)),
        "ef_scale": fitted("fisher", "fisher-empirical", "best_scale"),
        "outer_ce": ranged(r["trace gradient-outer"] / r["trace fisher-empirical"] for r in ends_of(points, last)),
        "ef_fitted": fitted("fisher", "fisher-empirical", "distance_at_best_scale"),
    }
