"""How folders and lists of images are laid out: a reader each, joined in `catalogue`."""
