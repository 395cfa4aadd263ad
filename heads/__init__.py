"""What learns: one family of heads a file, shared parts, trainer, scoring and metrics."""
