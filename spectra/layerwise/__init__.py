"""One matrix block by block: layers, branches, channels."""
