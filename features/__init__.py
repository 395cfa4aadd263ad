"""What is seen: images on disk, deterministic preprocessing, backbones, extraction."""
