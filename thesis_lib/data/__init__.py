"""What an experiment runs on: the embedded benchmark, the real datasets, and the networks."""
