"""Sweeps of many runs: plans, tasks, local and Slurm runs, and the evolution of their results over training."""
