"""Format numbers as text: with their error, and with their noun. Knows neither arrays nor records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun, as `1 probe`, `10 probes` or `3,466 parameters`.

    Args:
        count: the number.
        noun: the noun in the singular.
        plural: the plural, where it is not formed with s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def dtype_name(dtype: object) -> str:
    """The name of a torch dtype without `torch.`, such as float32."""
    return str(dtype).removeprefix("torch.")


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """Shorten paths: without the folders that all share, and without suffixes where names stay distinct."""
    every = list(dict.fromkeys(paths))
    parts = [path.split("/") for path in every]
    while every and all(len(part) > 1 for part in parts) and (len({part[0] for part in parts}) == 1):
        parts = [part[1:] for part in parts]
    names = ["/".join(part) for part in parts]
    short = [name[: name.rindex(".")] if "." in name.rpartition("/")[2].lstrip(".") else name for name in names]
    return dict(zip(every, short if len(set(short)) == len(every) else names, strict=True))


def outline(self: Any) -> str:
    """A `__repr__` of a dataclass on one short line: numbers, the first entries of vectors, shapes of other arrays."""
    shown = ", ".join(f"{field.name}={outlined(getattr(self, field.name))}" for field in fields(self) if field.repr)
    return f"{type(self).__name__}({shown})"


def outlined(value: Any) -> str:
    """A value on one short line, as in `outline`."""
    if hasattr(value, "tolist") and (shape := value.shape):
        if len(shape) == 1:
            first = ", ".join(f"{number:.4g}" for number in value[:3].tolist())
            return f"[{first}{', ...' if len(value) > 3 else ''}]"
        return f"<{' x '.join(map(str, shape))}>"
    if is_dataclass(value):
        return f"{type(value).__name__}(...)"
    if isinstance(value, Mapping):
        return f"<{', '.join(map(str, value))}>" if len(value) <= 8 else f"<{len(value)}>"
    if isinstance(value, Sized) and not isinstance(value, str):
        return f"<{len(value)}>"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def progress(numbers: Mapping[str, float]) -> str:
    """The progress of a method in words: products, converged eigenpairs, and the residual or the trace so far."""
    if "gram_rows" in numbers:
        return f"eigenvalues of a Gram matrix of {counted(int(numbers['gram_rows']), 'row')}"
    parts = [counted(int(numbers["products"]), "product")]
    if "converged" in numbers:
        parts.append(f"{numbers['converged']:.0f} of {numbers['wanted']:.0f} done")
    if "residual" in numbers and math.isfinite(numbers["residual"]):
        parts.append(f"residual {numbers['residual']:.1e}")
    if "trace" in numbers:
        parts.append(f"trace {numbers['trace']:.6g} ± {numbers['standard_error']:.1e}")
    return ", ".join(parts)


def with_error(value: float, error: float, most: int = 12, digits: int = 2) -> str:
    """A value rounded to the last digit of its error, as `17.40 ± 0.16` or `3.8731753 ± 8e-7`.

    Args:
        value: the number; written with an exponent below 1e-4 and from 1e6 on.
        error: its standard error or residual, with an exponent below 1e-3, and where either is 1e6 or more; 0 where the
            value is exact, nan where it is unknown and left out.
        most: the largest number of digits of the value.
        digits: the digits of an error from 1e-4 of the value to the value itself; any other has a single one.
    """
    if math.isnan(error):
        return short_exponent(f"{value:.{min(most, 6)}g}")
    if not (math.isfinite(value) and math.isfinite(error)):
        return short_exponent(f"{value:.6g} ± {error:.1g}")
    if error == 0:
        return short_exponent(f"{value:.{min(most, 8)}g} ± 0")
    shown = digits if 1e-4 * abs(value) < error <= abs(value) else 1
    last = math.floor(math.log10(float(f"{error:.{shown - 1}e}"))) - shown + 1  # the place of the error's last digit
    leading = math.floor(math.log10(abs(value))) if abs(value) > 10.0**last else last
    kept = max(1, min(most, leading - last + 1))
    if not value:
        number = "0"
    elif 1e-4 <= abs(value) < 1e6:
        number = f"{value:.{max(0, min(-last, kept - 1 - leading))}f}"
    else:
        number = f"{value:.{kept - 1}e}"
    if error < 1e-3:
        spread = f"{error:.{shown - 1}e}"
    elif max(error, abs(value)) < 1e6:
        spread = f"{error:.{max(0, -last)}f}"
    else:
        spread = f"{error:.{shown}g}"
    return short_exponent(f"{number} ± {spread}")


def brief(value: float, error: float) -> str:
    """A value with its error in at most four digits, as `0.6488 ± 2e-4`; four of them fit a line of 80 characters."""
    return with_error(value, error, most=4, digits=1)


def rounded(value: float) -> str:
    """A value in three digits, as `0.162`, `2840` or `1.6e-5`; with no exponent from 1e-4 to 1e6."""
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if 1e3 <= abs(float(text)) < 1e6 else short_exponent(text)


def short_exponent(text: str) -> str:
    """A number with a short exponent, `8e-7` for `8e-07`."""
    return text.replace("e-0", "e-").replace("e+0", "e+")
