"""Heads of normalizing flows, one method a file."""
