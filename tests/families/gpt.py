"""A language model that returns its logits and its loss, as nanoGPT does; -1 is no label."""

import torch
import torch.nn.functional as F
from torch import nn


class GPT(nn.Module):
    def __init__(self, tokens=6, width=4, length=5):
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, idx, targets=None):
        x = self.embed(idx) + self.place(torch.arange(idx.shape[1], device=idx.device))
        mask = torch.ones(idx.shape[1], idx.shape[1], device=idx.device).triu(1).bool()
        x = x + self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def data(n=8):
    tokens = torch.randint(0, 6, (n, 6))
    targets = tokens[:, 1:].clone()
    targets[0, 2:] = -1
    return {"idx": tokens[:, :-1], "targets": targets}
