"""Strategies inside other people's engines: one file for each, which imports it only when used."""
