# train.py
from pathlib import Path

import torch
from torch import nn

import spectra
from spectra.demo import mlp

STEPS = 400
(data,) = spectra.load_problem(model="spectra.demo:mlp", data="digits", batch_size=2000).problem.batches


def train(order, start=0, begin=0, state=None, keep=()):
    """Train by Adam from this start, or from a checkpoint, with the examples in this order."""
    torch.manual_seed(start)
    model, generator, batches = mlp(), torch.Generator().manual_seed(order), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(begin, STEPS + 1):
        if step in keep:
            held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(held, f"run/step-{step}.pt")
        batches = batches or list(torch.randperm(len(data.targets), generator=generator).split(128))
        chosen = batches.pop()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.inputs[chosen]), data.targets[chosen]).backward()
        optimizer.step()
    return model.state_dict()


Path("run").mkdir(exist_ok=True)
train(order=0, keep=(0, 10, 20, 30, 45, 60, 80, 100, 150, 200, 250, 300, 350, 400))
middle = torch.load("run/step-100.pt")
torch.save(train(order=1, begin=100, state=middle), "sibling.pt")  # another order of examples from step 100 on
torch.save(train(order=1), "second.pt")  # another order from the same start
torch.save(train(order=0, start=1), "stranger.pt")  # another start
