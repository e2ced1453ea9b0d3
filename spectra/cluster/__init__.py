"""One run in many processes: ranks of torch.distributed."""
