"""Where the time of ResNet-20's products goes: cuDNN's settings one by one, each convolution alone, and the profiler.

Printed as it is found: a run that is cut has shown the first parts. The profile goes to convolutions.txt.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from scripts.benchmarks.floor import Recording
from scripts.benchmarks.problems import Case, build
from scripts.benchmarks.timing import seconds, synchronise
from scripts.benchmarks.tools import gradient
from spectra.curvature.engine.differentiation import switched, twice_differentiable
from spectra.curvature.engine.hoisting import HoistedProduct, channels_last
from spectra.curvature.matrices import definition

aten = torch.ops.aten
PROBLEM = "resnet20"
DETERMINISTIC, AUTOTUNED, PRECISION = (False, True), (False, True), ("ieee", "tf32")
SLOWEST = 16  # convolutions, that are measured alone
KINDS = {"cpu": DeviceType.CPU, "cuda": DeviceType.CUDA}
KERNELS = 10  # of the profile, that are printed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    case = build(PROBLEM, torch.device(options.device))
    if options.device == "cpu":
        case = case.first(8)
    hessian = Second(case, "hessian")
    compare_settings(case, hessian)
    compare_convolutions(hessian)
    show_profile(hessian, options.out / "convolutions.txt")
    print(f"\nms a product of the GGN, deterministic, ieee: {milliseconds(Second(case, 'ggn').run):.1f}", flush=True)


class Second:
    """The second half of a problem's products, under whatever settings there are."""

    def __init__(self, case: Case, matrix: str):
        problem = case.problem()
        with twice_differentiable(problem.model):
            self.hoisted = HoistedProduct(definition(matrix).linearise, problem, problem.batches)
            self.kept = [self.hoisted.residuals(batch) for batch in problem.batches]
        generator = torch.Generator().manual_seed(0)
        self.vector = torch.randn(case.size, generator=generator).to(case.parameters[0])

    def run(self) -> Tensor:
        return sum(self.hoisted.apply(residuals, self.vector) for residuals in self.kept)

    def convolutions(self) -> list[tuple]:
        """The calls of one batch: (operation, arguments)."""
        recording = Recording(self.hoisted.second)
        with torch.no_grad():
            recording.run(*self.kept[0], self.vector)
        kinds = (aten.convolution.default, aten.convolution_backward.default)
        return [(target, args) for target, args, _ in recording.calls if target in kinds]


@contextmanager
def settings(deterministic: bool = True, autotuned: bool = False, precision: str = "ieee") -> Iterator[None]:
    """cuDNN's; as given they are the engine's own."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted = [(cudnn, "deterministic", deterministic), (cudnn, "benchmark", autotuned)]
    with switched([*wanted, (cudnn.conv, "fp32_precision", precision), (matmul, "fp32_precision", precision)]):
        yield


def milliseconds(call: Callable[[], object], repeats: int = 3) -> float:
    call()
    return 1e3 * min(seconds(call) for _ in range(repeats))


def in_channels_last(case: Case) -> Case:
    return replace(case, batches=[(channels_last(x), y) for x, y in case.batches])


def compare_settings(case: Case, hessian: Second) -> None:
    print(f"ms of a gradient and of a Hessian product, {PROBLEM}; images as they are, and with channels last")
    print(
        f"{'algorithms':<18}{'autotuned':<11}{'precision':<11}{'gradient':>9}{'last':>8}{'product':>9}{'last':>8}{'error':>9}"
    )
    last = in_channels_last(case)
    hessian_last = Second(last, "hessian")
    with settings():
        exact = hessian.run().double()
    for deterministic, autotuned, precision in product(DETERMINISTIC, AUTOTUNED, PRECISION):
        with settings(deterministic, autotuned, precision):
            calls = (lambda: gradient(case), lambda: gradient(last), hessian.run, hessian_last.run)
            times = [milliseconds(call, 2) for call in calls]
            error = (hessian.run().double() - exact).norm() / exact.norm()
        kind = "deterministic" if deterministic else "any"
        print(
            f"{kind:<18}{'yes' if autotuned else 'no':<11}{precision:<11}{times[0]:>9.1f}{times[1]:>8.1f}"
            f"{times[2]:>9.1f}{times[3]:>8.1f}{error:>9.0e}",
            flush=True,
        )


def compare_convolutions(hessian: Second) -> None:
    """Each kind of convolution of one batch's product alone, as it is and as it could be."""
    calls = hessian.convolutions()
    counts = Counter(describe(*call) for call in calls)
    kinds = {describe(*call): call for call in calls}
    times = {kind: [alone(way) for way in ways(*call)] for kind, call in kinds.items()}
    print(f"\nms of the {len(calls)} convolutions in one batch's product (x, w: derivative by input, weight)")
    print(
        f"{'kind, images, channels, width/stride':<36}{'n':>3}{'as is':>7}{'tuned':>7}{'last':>7}{'tf32':>7}"
        f"{'other':>6}{'mm':>6}"
    )
    for kind in sorted(kinds, key=lambda kind: -counts[kind] * times[kind][0])[:SLOWEST]:
        print(f"{kind:<36}{counts[kind]:>3}" + cells(times[kind]), flush=True)
    known = [[ms if ms is not None else row[0] for ms in row] for row in times.values()]
    totals = [sum(count * row[i] for count, row in zip(map(counts.get, times), known, strict=True)) for i in range(6)]
    print(f"{'all':<36}{len(calls):>3}" + cells(totals), flush=True)


def cells(times: list[float | None]) -> str:
    texts = ["-" if ms is None else f"{ms:.{2 if ms < 100 else 0}f}" for ms in times]
    return "".join(f"{text:>{width}}" for text, width in zip(texts, (7, 7, 7, 7, 6, 6), strict=True))


def describe(target, args: tuple) -> str:
    if target is aten.convolution.default:
        images, weight, _, stride, *_, transposed, _, groups = args
        kind = "transposed" if transposed else "forward"
    else:
        _, images, weight, _, stride, *_, groups, mask = args
        kind = "by " + " ".join(name for name, wanted in zip("xwb", mask, strict=True) if wanted)
    shape = f"{len(images)}x{images.shape[-1]}x{images.shape[-1]} {images.shape[1]}:{weight.shape[0]}"
    return f"{kind:<10} {shape} {weight.shape[-1]}/{stride[0]}" + (f" g{groups}" if groups > 1 else "")


Way = tuple[Callable[[], object], dict[str, Any]]  # a call, and settings for it


def ways(target, args: tuple) -> list[Way | None]:
    """As it is, autotuned, with channels last, in TF32, as another call, as a product of matrices."""
    last = tuple(channels_last(x) for x in args)
    as_it_is = partial(target, *args)
    other, matrices = another_call(target, args), as_matrix_product(target, args)
    return [
        (as_it_is, {}),
        (as_it_is, {"autotuned": True}),
        (partial(target, *last), {}),
        (as_it_is, {"precision": "tf32"}),
        other and (other, {}),
        matrices and (matrices, {}),
    ]


def alone(way: Way | None) -> float | None:
    """ms; None where there is no such way, or PyTorch knows none."""
    if way is None:
        return None
    call, wanted = way
    with settings(**wanted), torch.no_grad(), suppress(RuntimeError):
        return milliseconds(call, repeats=5)
    return None


def another_call(target, args: tuple) -> Callable[[], object] | None:
    """A transposed convolution as the derivative by input that it is; both derivatives one after the other."""
    if target is aten.convolution_backward.default:
        both = args[-1][:2] == [True, True]
        masks = ([True, False, False], [False, True, False])
        return (lambda: [target(*args[:-1], mask) for mask in masks]) if both else None
    images, weight, bias, *geometry, transposed, _, groups = args
    if not transposed or bias is not None:
        return None
    made = target(*args)  # of the shape of what it is a derivative by
    settings = (*geometry, False, [0] * len(geometry[0]), groups, [True, False, False])
    return lambda: aten.convolution_backward.default(images, made, weight, None, *settings)


def as_matrix_product(target, args: tuple) -> Callable[[], object] | None:
    """The same over patches that are written out; None where channels are in groups or there is a bias."""
    if target is aten.convolution.default:
        images, weight, bias, stride, padding, dilation, transposed, _, groups = args
    else:
        slopes, images, weight, _, stride, padding, dilation, transposed, _, groups, (by_images, by_weight, bias) = args
    if groups > 1 or bias or (transposed and target is not aten.convolution.default):
        return None
    geometry = {"kernel_size": weight.shape[2:], "dilation": dilation, "padding": padding, "stride": stride}
    if target is aten.convolution.default:
        if not transposed:
            return lambda: weight.flatten(1) @ F.unfold(images, **geometry)
        size = target(*args).shape[2:]
        return lambda: F.fold(weight.flatten(1).T @ images.flatten(2), size, **geometry)

    def run() -> None:
        if by_images:
            F.fold(weight.flatten(1).T @ slopes.flatten(2), images.shape[2:], **geometry)
        if by_weight:
            torch.bmm(slopes.flatten(2), F.unfold(images, **geometry).transpose(1, 2)).sum(0)

    return run


def show_profile(hessian: Second, path: Path) -> None:
    activities = [ProfilerActivity.CPU]
    if hessian.vector.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with settings(), profile(activities=activities, record_shapes=True) as profiled:
        start = time.perf_counter()
        hessian.run()
        synchronise()
        wall = 1e3 * (time.perf_counter() - start)
    measure = "self_device_time_total" if hessian.vector.is_cuda else "self_cpu_time_total"
    grouped = profiled.key_averages(group_by_input_shape=True)
    path.write_text(grouped.table(sort_by=measure, row_limit=40, max_name_column_width=90, max_shapes_column_width=110))
    kernels = [event for event in profiled.key_averages() if event.device_type == KINDS[hessian.vector.device.type]]
    events = sorted(kernels, key=lambda event: -getattr(event, measure))
    every = sum(getattr(event, measure) for event in events)
    print(f"\nprofile of a Hessian product: {wall:.0f} ms, of which in kernels {every / 1e3:.0f}")
    for event in events[:KERNELS]:
        taken, name = getattr(event, measure), event.key.removeprefix("void ").replace("at::native::", "")
        print(f"{taken / 1e3:>8.1f} ms {100 * taken / every:>4.0f} % {event.count:>5} x {name[:50]}", flush=True)


if __name__ == "__main__":
    main()
