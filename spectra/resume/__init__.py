"""The state of an unfinished run on disk, from which the same command resumes."""
