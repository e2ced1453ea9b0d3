"""Records of results, as they are kept in JSON and NPZ files."""
