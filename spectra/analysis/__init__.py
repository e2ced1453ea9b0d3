"""Questions about several matrices or checkpoints, answered from saved results."""
