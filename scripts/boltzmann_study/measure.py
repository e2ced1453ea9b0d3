"""What is measured: the exact spectrum as training goes, and estimates from samples beside it."""

from __future__ import annotations

from typing import Any

import scipy.stats
import torch
from torch import Tensor

import spectra
from scripts.examples.boltzmann import binary_digits, train
from spectra.systems.sampled_hessian import VARYING

HIDDEN, STEPS = 12, 300
CHAINS, BURN_IN, THIN = 64, 1500, 10
COUNTS = (25, 100, 400)  # samples of each chain
SEEDS = 20
SHOWN = 64  # images
LEADING = 8  # eigenvectors along which estimates are compared, from the top; and half as many from the bottom


def measure() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return numbers, and arrays for figures."""
    images = binary_digits()
    on = (images.double().sum(0) + 0.5) / (len(images) + 1)
    apart = -(images * on.log() + (1 - images) * (1 - on).log()).sum(1).mean().item()
    stages: dict[str, Any] = {}
    found = {}

    def progress(step: int, machine: spectra.RestrictedBoltzmannMachine, gradient: Tensor) -> None:
        if step in (0, STEPS // 10):
            stages[str(step)], found[str(step)] = stage(machine, images, gradient)

    machine = train(images, HIDDEN, STEPS, progress=progress)
    gradient = machine.gradient(images)
    stages[str(STEPS)], found[str(STEPS)] = stage(machine, images, gradient)
    values, vectors = found[str(STEPS)]
    numbers = {"weights": len(machine.parameters), "independent_pixels": apart, "stages": stages}
    numbers["sampled"], deviations, seen = compare(machine, images, values, vectors)
    numbers["coverage"] = coverage(deviations, seen)
    own_values = torch.linalg.eigvalsh(dense(sampled(machine, images, COUNTS[-1], len(COUNTS) - 1)))
    numbers["sampled"][-1] |= {"trace": own_values.sum().item(), "negative": (own_values < -1e-10).sum().item()}
    drawn = machine.sample(chains=SHOWN, count=1, burn_in=BURN_IN, seed=1)[:, 0, :64]
    arrays = {f"values_{name}": pair[0] for name, pair in found.items()}
    deviations[:, -len(values) :][seen < VARYING] = torch.nan  # whose errors are not known
    arrays |= {"values_sampled": own_values, "deviations": deviations, "images": images[:SHOWN], "drawn": drawn}
    return numbers, arrays


def sampled(machine: spectra.RestrictedBoltzmannMachine, images: Tensor, count: int, seed: int):
    return machine.sampled_hessian(images, chains=CHAINS, count=count, burn_in=BURN_IN, thin=THIN, seed=seed)


def dense(operator: Any) -> Tensor:
    """The matrix (n, n), by n products."""
    eye = torch.eye(operator.shape[0], dtype=operator.dtype)
    matrix = torch.cat([operator @ part for part in eye.split(64, dim=1)], dim=1)
    return (matrix + matrix.T) / 2


def stage(
    machine: spectra.RestrictedBoltzmannMachine, images: Tensor, gradient: Tensor
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """The exact spectrum at one point of training: its summary, and eigenvalues with eigenvectors."""
    values, vectors = torch.linalg.eigh(dense(machine.hessian(images)))
    negative = values[values < -1e-10]
    print(
        f"-log p {machine.negative_log_likelihood(images):.3f}: eigenvalues {values[0]:.3g} to {values[-1]:.3g}",
        flush=True,
    )
    summary = {
        "negative_log_likelihood": machine.negative_log_likelihood(images).item(),
        "gradient": gradient.norm().item(),
        "trace": values.sum().item(),
        "largest": values[-1].item(),
        "smallest": values[0].item(),
        "negative": len(negative),
        "sum_of_negative": negative.sum().item(),
    }
    return summary, (values, vectors)


def compare(
    machine: spectra.RestrictedBoltzmannMachine, images: Tensor, values: Tensor, vectors: Tensor
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Estimates of three sizes beside the exact matrix, and of the middle one for many seeds: deviations in standard
    errors, and the number of chains that tell of each product.
    """
    ends = [*range(-1, -LEADING - 1, -1), *range(LEADING // 2)]
    chosen, expected = vectors[:, ends], values[ends]
    exact = machine.hessian(images)
    direction = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product, rows, deviations = exact @ direction, [], []
    for seed, count in enumerate(COUNTS):  # with one seed the shorter chains would begin the longer ones
        estimate = sampled(machine, images, count, seed)
        forms, errors = (chosen * (estimate @ chosen)).sum(0), estimate.standard_errors(chosen)
        found, own_error = estimate.product_with_error(direction)
        top = spectra.eigenpairs(estimate, k=LEADING, which="LA", tolerance=1e-6)
        bottom = spectra.eigenpairs(estimate, k=LEADING // 2, which="SA", tolerance=1e-3)
        own = torch.cat([top.values, bottom.values])
        rows.append(
            {
                "count": count,
                "notes": estimate.notes,
                "product_error": ((found - product).norm() / product.norm()).item(),
                "product_standard_error": (own_error.nan_to_num().norm() / product.norm()).item(),
                "unknown_errors": own_error.isnan().sum().item(),
                "trace_error": estimate.trace_error(),
                "exact": expected.tolist(),
                "forms": forms.tolist(),
                "form_errors": errors.tolist(),
                "eigenvalues": own.tolist(),
            }
        )
        print("\n".join(estimate.notes), flush=True)
    seen = []
    for seed in range(SEEDS):
        estimate = sampled(machine, images, COUNTS[1], 100 + seed)
        seen.append(estimate.free.varying_chains())
        forms = ((chosen * (estimate @ chosen)).sum(0) - expected) / estimate.standard_errors(chosen)
        own_error = estimate.free.with_error(direction)[1]  # also where it is not known
        found = estimate @ direction
        deviations.append(torch.cat([forms, (found - product) / own_error]))
    return rows, torch.stack(deviations), torch.stack(seen)


def coverage(deviations: Tensor, seen: Tensor) -> dict[str, Any]:
    """How often 68 % and 95 % intervals, by Student's t, hold the truth; for products also by the chains that tell."""
    student = scipy.stats.t(CHAINS - 2)
    forms = LEADING + LEADING // 2
    products = deviations[:, forms:]
    parts = {
        "forms": deviations[:, :forms],
        "products_of_many_chains": products[seen >= VARYING],
        "products_of_few_chains": products[seen < VARYING],
    }
    found: dict[str, Any] = {"expected_mean_square": student.var()}
    for name, part in parts.items():
        part = part[part.isfinite()]
        found[name] = {"numbers": len(part), "mean_square": part.square().mean().item(), "mean": part.mean().item()}
        for level in (0.68, 0.95):
            limit = student.ppf((1 + level) / 2)
            found[name][f"within_{level:.0%}"] = (part.abs() < limit).double().mean().item()
    return found
