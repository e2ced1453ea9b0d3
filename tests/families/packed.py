"""An LSTM over sequences of different lengths, which stand in the batch."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Packed(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.embed = nn.Embedding(6, 3, padding_idx=0)
        self.lstm = nn.LSTM(3, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embed(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.head(hidden[-1])


def data(n=10):
    lengths = torch.randint(2, 7, (n,))
    tokens = torch.randint(1, 6, (n, 6))
    tokens[torch.arange(6) >= lengths[:, None]] = 0
    return {"tokens": tokens, "lengths": lengths, "labels": torch.randint(0, 2, (n,))}
