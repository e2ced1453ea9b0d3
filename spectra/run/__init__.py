"""From a problem and a request to a finished record. Knows nothing of the command line."""
