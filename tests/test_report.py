"""What is shown of a number: its error, and no digit that the error has eaten."""

import numpy as np
import pytest
import torch
from helpers import known, seeded

from spectra.krylov.quadrature import spectral_measure
from spectra.records.density import Share
from spectra.spectrum.curves import cumulative
from spectra.spectrum.recording import negative_share
from spectra.tables.layers import LONGEST, shown
from spectra.tables.results import percentage
from spectra.wording import with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (17.404, 0.155, "17.40 ± 0.15"),
        (17.34, 0.0953, "17.340 ± 0.095"),
        (3.87317532, 8.1e-7, "3.8731753 ± 8e-7"),
        (-0.293790, 4.2e-7, "-0.2937900 ± 4e-7"),
        (0.004151, 1.62e-5, "0.004151 ± 1.6e-5"),
        (26.1, 8.2, "26.1 ± 8.2"),
        (5.2, 0.9996, "5.2 ± 1.0"),
        (100.0, 9.96, "100 ± 10"),
        (1234567.0, 12345.0, "1.235e+6 ± 1.2e+4"),
        (1234567.0, 2.0, "1.234567e+6 ± 2"),
        (1e-7, 0.5, "1e-7 ± 0.5"),
        (0.0, 3e-9, "0 ± 3e-9"),
        (1e-12, 3e-10, "1e-12 ± 3e-10"),
        (4.03573382, 0.0, "4.0357338 ± 0"),
        (0.25, float("nan"), "0.25"),
        (0.25, float("inf"), "0.25 ± inf"),
        (float("nan"), 0.1, "nan ± 0.1"),
    ],
)
def test_a_value_is_shown_to_the_digit_of_its_error(value, error, text):
    assert with_error(value, error) == text


def test_the_share_of_negative_eigenvalues_lies_between_its_limits():
    """A bulk at zero that eight steps do not resolve: the quadrature's own share may be far off, its bounds hold."""
    for seed in range(10):
        spectrum = torch.cat([torch.linspace(-0.001, 0.002, 300), torch.linspace(-1, 2, 40)])
        measure = spectral_measure(known(spectrum).matrix, probes=4, steps=8, generator=seeded(seed))
        share = negative_share(measure, semidefinite=False)
        true = (spectrum < 0).double().mean().item()
        assert 0 <= share.lower <= true <= share.upper <= 1
        assert share.lower <= share.value <= share.upper


def test_nothing_is_negative_by_definition_or_unknown():
    measure = spectral_measure(known([0.0, 1.0, 3.0]).matrix, probes=2, steps=2, generator=seeded())
    assert percentage(negative_share(measure, semidefinite=True)) == "0"
    assert percentage(Share(value=0.259, lower=0.13, upper=0.694)) == "26 (13-69)"
    assert percentage(None) == ""


@pytest.mark.parametrize("probes", [1, 2, 10])
def test_no_eigenvalue_of_a_zero_matrix_is_negative(probes):
    measure = spectral_measure(torch.zeros(30, 30, dtype=torch.float64), probes=probes, steps=5, generator=seeded())
    found = negative_share(measure, semidefinite=False)
    assert (found.value, found.lower, found.upper) == (0.0, 0.0, 0.0)


def test_beyond_a_spectrum_known_exactly_there_is_nothing():
    """Two probes that agree on all three eigenvalues leave chance to their shares alone.

    A diagonal matrix, whose products leave no rounding that a run would follow beyond its three steps.
    """
    matrix = torch.diag(torch.tensor(np.repeat([0.0, 1.0, 3.0], 10)))
    measure = spectral_measure(matrix, probes=2, steps=8, generator=seeded())
    assert percentage(negative_share(measure, semidefinite=False)) == "0"
    band = cumulative(measure, np.array([-0.1, 0.5, 2.0, 3.1]))
    assert (band.lower[0], band.upper[0], band.lower[-1], band.upper[-1]) == pytest.approx((0, 0, 1, 1))
    assert (band.upper - band.lower)[1:-1].min() > 0.1


def test_long_names_of_layers_stay_different():
    """Of torchvision's and transformers' transformers, which differ in the middle."""
    parts = ("self_attention.out_proj", "self_attention.in_proj", "mlp.0", "ln_1")
    names = [f"encoder.layers.encoder_layer_{i}.{part}" for i in range(12) for part in parts]
    ends = ("attention.self.query", "attention.output.dense", "attention.output.LayerNorm", "output.dense")
    names += [f"bert.encoder.layer.{i}.{end}" for i in range(12) for end in ends]
    assert len({shown(name) for name in names}) == len(names)
    assert all(len(shown(name)) <= LONGEST for name in [*names, "a." + 30 * "b"])
    assert shown("encoder.layers.encoder_layer_11.self_attention.out_proj") == "e.l.e11.s.out_proj"
    assert shown("fc") == "fc"
