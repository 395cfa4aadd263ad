"""Heads that compare with what was seen: galleries and Gaussians, one method a file."""
