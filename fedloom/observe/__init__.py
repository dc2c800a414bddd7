"""What a run leaves: metrics, checkpoints, evaluation."""
