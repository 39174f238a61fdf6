"""What memory and meta-learning give on domains never seen: ``python -m examples.study``."""
