"""Measurements, as ratios in one run against what a user would have; see docs/benchmarks.md."""
