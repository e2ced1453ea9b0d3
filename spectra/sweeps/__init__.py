"""Many runs: plans, tasks, runs here and on Slurm, and what their results show over training."""
