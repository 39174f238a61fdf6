"""The one error of the data side."""

__all__ = ["DataError", "NoImages"]


class DataError(ValueError):
    """A file of a dataset is missing, damaged or not what its description says.

    One line that names the file, also where it was raised in a process of a ``DataLoader``, which
    raises it again with the whole traceback for a message.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in "):
            message = message.rstrip("\n").rpartition("\n")[2].partition(": ")[2]
        super().__init__("\\n".join(message.splitlines()))


class NoImages(DataError):
    """A folder holds no image of a split."""
