"""Export a network: ``python -m pinmem.export --checkpoint FILE --format onnx --out FILE``.

The network with its memory as plain operators: images [B,3,H,W], normalised with ImageNet's mean
and deviation, to logits [B,K,H,W]. What is written is run and compared before the file gets its
name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem.backends import backend
from pinmem.checkpoint import open_trained
from pinmem.extras import optional
from pinmem.models import Segmenter
from pinmem.program import parse, run
from pinmem.writing import write_beside

TOLERANCE = 1e-4
_LEAST = 65
_SIZES = ((192, 256), (225, 161))


@dataclass
class ExportConfig:
    """Export a network and compare what was exported with it.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        out: the file to write.
        format: ``onnx``, or ``torch_export`` (.pt2).
        size: height and width, if they are to be fixed; absent: any from 65, any number of images.
        opset: of ONNX.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        overwrite: replace the file if it exists.
    """

    checkpoint: str
    out: str
    format: Literal["onnx", "torch_export"]
    size: tuple[int, int] | None = None
    opset: int = 18
    model: str | None = None
    output_stride: int | None = None
    overwrite: bool = False


class Predictor(nn.Module):
    """A network as it is exported: images [B,3,H,W] to logits [B,K,H,W]."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """`Segmenter.predict`."""
        return self.network.predict(images)


def torch_program(network: Segmenter, size: tuple[int, int] | None = None) -> Any:
    """The `torch.export.ExportedProgram` of a network, of plain operators alone.

    Args:
        network: on the CPU; it is put in evaluation mode and contiguous memory.
        size: height and width; None for any from 65. The number of images is any.

    Raises:
        ValueError: the network cannot be exported for any size.
    """
    # Strides of channels last are products of sizes, which must not be guarded.
    network = network.to(memory_format=torch.contiguous_format)
    height, width = size or _SIZES[0]
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        # Below, a map of one pixel would be a case of its own.
        named = {2: "height", 3: "width"}
        shapes |= {i: torch.export.Dim(name, min=_LEAST) for i, name in named.items()}
    try:
        with torch.no_grad(), backend("reference"), _quiet():
            return torch.export.export(
                Predictor(network), (_pictures(2, height, width),), dynamic_shapes=(shapes,)
            )
    except Exception as error:
        if size is not None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"size: this network cannot be exported for any size, --size fixes one: {reason}"
        ) from error


def onnx_bytes(program: Any, opset: int = 18) -> bytes:
    """An exported program as an ONNX file.

    Raises:
        ValueError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        optional(package, "export", "format onnx")
    with _quiet():
        exported = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], opset_version=opset,
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert exported is not None
    return exported.model_proto.SerializeToString()


def onnx_runner(model: bytes) -> Callable[[Tensor], Tensor]:
    """Run an ONNX file on the CPU: images to logits.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    runtime = optional("onnxruntime", "export", "format onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def differences(
    network: Segmenter, exported: Callable[[Tensor], Tensor], size: tuple[int, int] | None = None
) -> dict[str, float]:
    """The largest difference of the logits, relative to the largest logit, by size of the images.

    Args:
        network: in evaluation mode, on the CPU.
        exported: the same as a function.
        size: that it was exported for; None for any.
    """
    found = {}
    sizes = (size, size) if size else _SIZES
    shapes = [(1, *sizes[0]), (3, *sizes[1])]
    for count, height, width in shapes:
        images = _pictures(count, height, width)
        with torch.no_grad():
            expected, got = network.predict(images), exported(images)
        difference = (got - expected).abs().max() / expected.abs().max()
        found[f"{count}x3x{height}x{width}"] = float(difference)
    return found


def _pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth images with some noise, normalised, the same every time."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 6, 8, generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic") + 0.1 * noise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main() -> None:
    """Run the program."""
    config = parse(ExportConfig, program="python -m pinmem.export")
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ValueError(f"out: {config.out} exists; --overwrite true replaces it")
    if config.format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, "export", "format onnx")
    network, _ = open_trained(
        config.checkpoint, model=config.model, output_stride=config.output_stride
    )
    program = torch_program(network, config.size)
    if config.format == "onnx":
        content = onnx_bytes(program, config.opset)
        exported = onnx_runner(content)
    else:
        with _quiet():
            file = io.BytesIO()
            torch.export.save(program, file)
            content = file.getvalue()
            exported = torch.export.load(io.BytesIO(content)).module()
    found = differences(network, exported, config.size)
    for images, difference in found.items():
        print(f"{images}: largest difference {difference:.1e} of the largest logit")
    if not all(difference <= TOLERANCE for difference in found.values()):  # NaN is a fault
        raise ValueError(f"out: not written: it differs by more than {TOLERANCE} from the network")
    write_beside(out, lambda file: file.write(content), "export", durable=True)
    print(
        f"{out}: {len(content) / 2**20:.1f} MiB, {'any size' if config.size is None else 'fixed'}"
    )


if __name__ == "__main__":
    run(main)
