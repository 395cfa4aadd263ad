"""Retraining that may run with nobody watching: guard, gate, and what came of it."""
