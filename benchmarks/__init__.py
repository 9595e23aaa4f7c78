"""Benchmarks, one file per question: `pytest benchmarks --benchmark-only`."""
