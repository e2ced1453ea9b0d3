"""The figures of the examples show the rows that the examples return."""

import torch

from scripts.examples.evidence import Row as Decay
from scripts.examples.figures import evidence_figure, influence_figure, pruning_figure, trace_figure
from scripts.examples.pruning import METHODS
from scripts.examples.pruning import Row as Pruned


def test_accuracy_by_sparsity_without_and_with_retraining():
    rows = [Pruned(m, s, 90 - 50 * s + i, 1, 95 - i, 1) for s in (0.2, 0.4) for i, m in enumerate(METHODS)]
    alone, between = pruning_figure(rows).axes
    assert [text.get_text() for text in alone.get_legend().get_texts()] == list(METHODS)
    assert [curve.lines[0].get_xydata().tolist() for curve in alone.containers] == [
        [[20, 80 + i], [40, 70 + i]] for i in range(len(METHODS))
    ]
    assert [curve.lines[0].get_ydata().tolist() for curve in between.containers] == [[95 - i] * 2 for i in range(3)]


def test_evidence_and_held_out_loss_by_weight_decay():
    rows = [Decay(decay, 0, -decay, 1, 0, 1, 1, 2 * decay, 1) for decay in (0.1, 1.0)]
    left, right = evidence_figure(rows).axes
    assert left.containers[0].lines[0].get_xydata().tolist() == [[0.1, -0.1], [1, -1]]
    assert right.containers[0].lines[0].get_xydata().tolist() == [[0.1, 0.2], [1, 2]]


def test_predicted_against_true_changes():
    true = torch.tensor([1.0, 2.0])
    figure = influence_figure({"ridge": ({"half": true / 2}, true), "logistic": ({"whole": true}, true)})
    shown = [axes.lines[-1].get_xydata().tolist() for axes in figure.axes]
    assert shown == [[[1, 0.5], [2, 1]], [[1, 1], [2, 2]]]


def test_errors_of_a_trace_by_products():
    (axes,) = trace_figure({"one": [(10, 0.1), (20, 0.05)], "other": [(10, 0.2)]}).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[10, 0.1], [20, 0.05]], [[10, 0.2]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other"]
