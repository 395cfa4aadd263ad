"""Heads over pairs of images of one place, one method a file."""
