"""What is seen: images on disk (`images`), frozen backbones (`backbones`), blocks (`extract`)."""
