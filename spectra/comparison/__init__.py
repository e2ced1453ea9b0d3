"""Several matrices of one problem set against each other."""
