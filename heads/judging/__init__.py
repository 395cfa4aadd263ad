"""What scores are worth: scores of maps, thresholds, metrics."""
