"""Many processes and many jobs: plans of many tasks, run here or by Slurm."""
