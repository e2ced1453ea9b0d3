"""Knowledge distillation: the teacher, frozen, lives in the file of the loss."""

import torch
import torch.nn.functional as F
from torch import nn

teacher = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
with torch.no_grad():
    for number, parameter in enumerate(teacher.parameters()):
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter).add(0.1 * number).sin())
teacher.requires_grad_(False).eval()


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(n=20):
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def loss(model, batch, heat=2.0):
    x, y = batch
    student, wise = model(x), teacher(x.double()).to(x)
    soft = F.kl_div((student / heat).log_softmax(1), (wise / heat).softmax(1), reduction="none").sum(1)
    return 0.5 * heat**2 * soft + 0.5 * F.cross_entropy(student, y, reduction="none")
