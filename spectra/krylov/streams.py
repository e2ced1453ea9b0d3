"""Random numbers by purpose: one seed gives each purpose a stream of its own, independent of the others.

A method draws from the stream of the seed itself, whichever method it is: two runs of one seed begin alike. But what is
estimated beside known eigenvectors takes them to be independent of its probes (then tr PAP, P = I - U'U, is estimated
without bias), and the eigenvectors of a run with the same seed began as the first vectors of that stream. So such
probes have a stream of their own.
"""

from __future__ import annotations

import hashlib

import torch

METHOD = ""  # starting vectors and probes of a method, checks of a matrix
BESIDE_EIGENVECTORS = "probes beside known eigenvectors"


def stream(seed: int, purpose: str = METHOD) -> torch.Generator:
    """A CPU generator at the start of the stream of this seed for this purpose."""
    if purpose == METHOD:
        return torch.Generator().manual_seed(seed)
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
