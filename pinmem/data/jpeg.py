"""What a JPEG decoder warns of as it goes on, and Pillow does not pass along."""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from pathlib import Path

import torch
from torchvision.io import decode_jpeg

__all__ = ["decoder_warnings"]

_LOCK = threading.Lock()  # one process has one standard error


def decoder_warnings(path: Path) -> str:
    """What libjpeg prints about a JPEG file while it decodes it, in one line; nothing for others.

    torchvision leaves libjpeg's warnings on standard error, from where they are taken here.
    """
    data = path.read_bytes()
    if data[:2] != b"\xff\xd8":
        return ""
    with _LOCK, tempfile.TemporaryFile() as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torchvision's decoders
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        except RuntimeError:
            return ""  # CMYK and the like; Pillow has decoded it
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        caught.seek(0)
        return " ".join(caught.read().decode(errors="replace").split())
