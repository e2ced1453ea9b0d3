"""At the teacher's own parameters: how the empirical Fisher nears the Fisher, and the Hessian the GGN, with N labels.

The labels' distribution is the model's, so that both differences are means of N independent terms of mean zero:
their norms fall as N^(-1/2). Under mse, noise of another variance leaves the empirical Fisher another scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scripts.fisher_is_hessian.distances import pair
from scripts.fisher_is_hessian.matrices import empirical, hessian, jacobians, output_space, sandwich
from scripts.fisher_is_hessian.tasks import CLASSES, Sizes, all_digits, drawn_by, train_teacher

NARROW = 0.5  # the variance of -log p itself, had mse been a sum over outputs


def rows(loss: str, sizes: Sizes, seed: int, repeats: int = 2) -> Iterator[dict[str, float | str]]:
    """One for each number of labels, from one an input to `sizes.draws`, and draw."""
    teacher = train_teacher(loss, sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    images = all_digits()[0]
    inputs = images[torch.randperm(len(images), generator=generator)[: sizes.teacher_inputs]]
    jacobian = jacobians(teacher, inputs)
    with torch.no_grad():
        outputs = teacher(inputs)
    own = output_space(loss, outputs, outputs[:, None])
    ggn, fisher = sandwich(jacobian, own.curvature), sandwich(jacobian, own.expected)
    for variance in (CLASSES / 2, NARROW) if loss == "mse" else (CLASSES / 2,):
        for power in range(sizes.draws.bit_length()):
            for repeat in range(repeats):
                task = drawn_by(teacher, loss, inputs, 2**power, generator, variance)
                slopes = output_space(loss, outputs, task.labels).slopes
                row = {"loss": loss, "noise": variance if loss == "mse" else "", "seed": seed, "repeat": repeat}
                row["examples"] = task.examples
                yield {**row, "a": "fisher", "b": "fisher-empirical", **pair(fisher, empirical(jacobian, slopes))}
                yield {**row, "a": "hessian", "b": "ggn", **pair(hessian(teacher, task), ggn)}
