"""Benchmarks: two things are compared in one interleaved run, and ratios of medians are quoted."""
