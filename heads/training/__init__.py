"""How heads learn: the trainer, its loop and checkpoints, arithmetic, sources and splits."""
