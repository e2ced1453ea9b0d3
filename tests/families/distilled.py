"""Knowledge distillation: the teacher, frozen, lives in the loss."""

import torch
import torch.nn.functional as F
from torch import nn


def teacher():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_((torch.linspace(-1, 1, parameter.numel()) + 0.1 * number).sin().view_as(parameter))
    return model.requires_grad_(False).eval()


class Distillation(nn.Module):
    def __init__(self, heat=2.0):
        super().__init__()
        self.teacher, self.heat = teacher(), heat

    def forward(self, model, batch):
        x, y = batch
        student, wise = model(x), self.teacher(x)
        log_p, q = (student / self.heat).log_softmax(1), (wise / self.heat).softmax(1)
        soft = F.kl_div(log_p, q, reduction="none").sum(1)
        return 0.5 * self.heat**2 * soft + 0.5 * F.cross_entropy(student, y, reduction="none")


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(n=20):
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def single(model, batch):
    return F.mse_loss(model(batch[0]), teacher()(batch[0]))
