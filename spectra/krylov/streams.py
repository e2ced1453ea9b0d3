"""Random numbers by purpose: one seed gives each purpose an independent stream.

Every method draws from the stream of the seed itself, so different methods with one seed start from the same vectors.
An estimate that deflates known eigenvectors U needs probes that are independent of U: only then is tr PAP, with
P = I - U'U, estimated without bias. The eigenvectors of a run with the same seed depend on the first vectors of its
stream, so these probes have a separate stream.
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
