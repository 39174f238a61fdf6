"""Measuring a network: from images to logits, confusion matrices, scores, protocols."""

from pinmem.evaluation.counting import confusion_of
from pinmem.evaluation.folding import folded
from pinmem.evaluation.inference import Inference, Prediction, infer
from pinmem.evaluation.protocols import (
    Protocol,
    check_classes,
    choose_classes,
    open_dataset,
    reading,
)
from pinmem.evaluation.scores import Score, score, table

__all__ = [
    "Inference",
    "Prediction",
    "Protocol",
    "Score",
    "check_classes",
    "choose_classes",
    "confusion_of",
    "folded",
    "infer",
    "open_dataset",
    "reading",
    "score",
    "table",
]
