"""Benchmarks: every number that the README shows comes from here."""
