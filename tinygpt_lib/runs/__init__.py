"""Training runs: settings with names, checkpoints, resuming, several processes."""
