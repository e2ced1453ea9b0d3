"""What an unfinished run has done so far, on disk, so that the same command goes on from there."""
