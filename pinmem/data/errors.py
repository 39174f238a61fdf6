"""The one error of the data side."""

__all__ = ["DataError"]


class DataError(ValueError):
    """A file of a dataset is missing, damaged or not what its layout says; one line, naming it."""
