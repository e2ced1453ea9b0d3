"""Commands, calls, settings, methods and forecasts have the same defaults."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

import pytest

import spectra
from spectra import defaults
from spectra.commands import cli_command
from spectra.krylov.methods import EIG, TRACE

SETTINGS = {
    "eig": "spectra.run.eig:EigSettings",
    "trace": "spectra.run.trace:TraceSettings",
    "density": "spectra.run.density:DensitySettings",
    "inspect": "spectra.run.inspection:InspectSettings",
    "compare": "spectra.comparison.run:CompareSettings",
    "layers": "spectra.layerwise.run:LayersSettings",
    "landscape": "spectra.surfaces.run:LandscapeSettings",
    "step": "spectra.steps.run:StepSettings",
}
# What takes the settings of a command, beside the command: calls, methods and forecasts.
TAKERS = {
    "eig": ["spectra:eig", "spectra.krylov.forecast:forecast_eigenpairs", *EIG.values()],
    "trace": ["spectra:trace", "spectra.krylov.forecast:forecast_trace", *TRACE.values()],
    "density": [
        "spectra:density",
        "spectra.krylov.quadrature:spectral_measure",
        "spectra.krylov.forecast:forecast_measure",
    ],
    "inspect": ["spectra.run.inspection:forecast_commands"],
    "compare": ["spectra:compare"],
    "layers": ["spectra:layers", "spectra.layerwise.layers:layers"],
    "landscape": [],
    "step": ["spectra:step"],
}
OTHERWISE = {  # a default that stands for what suits, or for nothing at all, and what a function takes by itself
    ("layers", "k"): 1,
    ("layers", "rtol"): defaults.RTOL,
    ("layers", "steps"): 0,
}


def defaults_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("command", SETTINGS)
def test_a_command_has_the_defaults_of_its_settings(command):
    options = {{"tol": "tolerance"}.get(p.name, p.name): p.default for p in cli_command(command).params}
    own = defaults_of(resolve_name(SETTINGS[command]))
    for name in own.keys() & options.keys() - {"steps" if command == "layers" else ""}:  # 0 without --density
        shown = None if "UNSET" in repr(options[name]).upper() else options[name]
        assert shown == own[name], name


@pytest.mark.parametrize(("command", "place"), [(command, place) for command in TAKERS for place in TAKERS[command]])
def test_whatever_takes_the_settings_has_their_defaults(command, place):
    own, taken = defaults_of(resolve_name(SETTINGS[command])), defaults_of(resolve_name(place))
    for name in own.keys() & taken.keys():
        assert taken[name] == OTHERWISE.get((command, name), own[name]), name


def test_time_between_savings():
    assert {p.default for p in cli_command("eig").params if p.name == "save_every"} == {defaults.SAVE_EVERY}
    for call in (spectra.eig, spectra.trace, spectra.density):
        assert defaults_of(call)["save_every"] == defaults.SAVE_EVERY


def test_the_cost_of_a_sweep_counts_from_them():
    from spectra.sweeps.cost import DEFAULT_DENSITY

    assert DEFAULT_DENSITY == {"probes": defaults.DENSITY_PROBES, "steps": defaults.DENSITY_STEPS}
