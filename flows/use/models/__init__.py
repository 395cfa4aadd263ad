"""Registered models: what they are made of, whether they come out again, how they stand."""
