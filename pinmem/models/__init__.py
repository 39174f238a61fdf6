"""Segmentation networks: DeepLabs on many backbones, with and without class memory."""

from .deeplab import MODEL_NAMES, Segmenter, SegmenterOutput, build_model
from .official import load_official

__all__ = ["MODEL_NAMES", "Segmenter", "SegmenterOutput", "build_model", "load_official"]
