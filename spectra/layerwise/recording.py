"""Convert the analysis of a matrix's blocks to its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectra.layerwise.layers import Layers, distinct
from spectra.records.density import measure_fields
from spectra.records.eig import LARGEST_VECTORS
from spectra.records.entry import Estimate, cost_of
from spectra.records.layers import Block, LayersResult, LowRank
from spectra.vectors import gather_on_first


def layers_results(found: Sequence[Any], by: str, sort: str, method: str) -> list[LayersResult]:
    """The records of measurements with `Layers` as answers."""
    return [layers_result(measurement, by, sort, method) for measurement in found]


def layers_result(measurement: Any, by: str, sort: str, method: str) -> LayersResult:
    """The record of one measurement with `Layers` as its answer."""
    found: Layers = measurement.answer
    error = Estimate.of(*found.trace).standard_error
    return LayersResult(
        method=method,
        by=by,
        sort=sort,
        trace=found.trace.value,
        standard_error=math.inf if error is None else error,
        **pairs_fields(found.leading),
        blocks=[block_record(found, i) for i in range(len(found.blocks))],
        diagonal=gathered_vector(found.diagonal.values),
        diagonal_errors=gathered_vector(found.diagonal.standard_errors),
        block_eigenvectors=block_eigenvectors(found),
        **cost_of(measurement),
    )


def pairs_fields(pairs: Any) -> dict[str, Any]:
    """The fields of eigenvalues and residuals, None without eigenpairs."""
    if pairs is None:
        return {"values": None, "residuals": None}
    return {"values": pairs.values.numpy(), "residuals": pairs.residuals.numpy()}


def block_record(found: Layers, i: int) -> Block:
    """The record of one block; fields that were not requested are None."""
    block, trace, share = found.blocks[i], Estimate.of(*found.traces[i]), Estimate.of(*found.shares[i])
    sensitivity, size = Estimate.of(*found.sensitivities[i]), len(block.index)
    mean = Estimate.of(*(number / size for number in found.traces[i]))
    pairs = found.eigenpairs[i] if found.eigenpairs else None
    return Block(
        name=block.name,
        parameters=size,
        trace=trace.value,
        standard_error=trace.standard_error,
        share=share.value if found.trace.value else None,
        share_error=share.standard_error if found.trace.value else None,
        mean=mean.value,
        mean_error=mean.standard_error,
        sensitivity=sensitivity.value,
        sensitivity_error=sensitivity.standard_error,
        **pairs_fields(pairs),
        complete=pairs.complete if pairs else None,
        mass=found.mass(i) if found.leading and distinct(found.leading) else None,
        overlap=found.overlap(i) if pairs else None,
        low_rank=low_ranks(found, i) if pairs else None,
        **measure_fields(found.measures[i] if found.measures else None),
    )


def low_ranks(found: Layers, i: int) -> list[LowRank]:
    """Stable ranks of the leading eigenvectors of the block and of the full matrix, by weight."""
    own = found.low_ranks(i, found.eigenpairs[i].vectors[0].cpu()) if found.leading_is_reliable(i) else []
    u = found.vector if found.share_is_reliable(i) else None
    everything = {} if u is None else dict(found.low_ranks(i, u[found.blocks[i].index]))
    return [LowRank(weight=w, stable_rank=rank, of_whole=everything.get(w)) for w, rank in own]


def gathered_vector(vector: Any) -> np.ndarray | None:
    """The whole vector in the process that writes; None in the others."""
    rows = gather_on_first(vector[None]).cpu().numpy()
    return rows[0] if len(rows) else None


def block_eigenvectors(found: Layers) -> np.ndarray | None:
    """The blocks' eigenvectors (k, n), up to 1 GiB: see `LayersResult.block_eigenvectors`."""
    size = sum(pairs.vectors.nbytes for pairs in found.eigenpairs)
    if not 0 < size <= LARGEST_VECTORS:
        return None
    k, n = max(len(pairs.values) for pairs in found.eigenpairs), sum(len(block.index) for block in found.blocks)
    rows = np.full((k, n), np.nan, dtype=found.eigenpairs[0].vectors.cpu().numpy().dtype)
    for block, pairs in zip(found.blocks, found.eigenpairs, strict=True):
        rows[: len(pairs.values), block.index.numpy()] = pairs.vectors.cpu().numpy()
    return rows
