"""The example of weight perturbation: its table shows what it is to show."""

import math

from scripts.examples.weight_perturbation import main


def test_errors_are_those_of_the_closed_form(capsys):
    rows = main(evaluations=600, samples=30)
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert [(row.quantity, row.form) for row in rows] == [
        (quantity, form) for form in ("central", "forward") for quantity in ("gradient", "H v")
    ]
    for row in rows:
        perturbations = row.evaluations / {"gradient": 2, "H v": 4}[row.quantity] * (1 + (row.form == "forward"))
        assert math.isclose(row.expected, math.sqrt(329 / perturbations), rel_tol=0.01)
        assert abs(row.error / row.expected - 1) < 0.2
        assert abs(row.standard_error / row.expected - 1) < 0.2
