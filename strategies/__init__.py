"""Decoding strategies: one file per published idea."""
