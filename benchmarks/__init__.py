"""Measurements: ratios in one run against what a user would have instead. See docs/benchmarks.md."""
