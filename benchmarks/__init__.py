"""Benchmarks of every op and of the training step: ``python -m benchmarks --help``."""
