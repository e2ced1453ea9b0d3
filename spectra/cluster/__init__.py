"""Runs in many processes: the ranks of torch.distributed."""
