"""Static int8 quantisation of an exported ONNX file by ONNX Runtime."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from kdnb.deploy.formats import Exported, open_exported, require_packages
from kdnb.runs.files import write_atomically


@contextmanager
def quiet() -> Iterator[None]:
    """A context without warnings: ONNX Runtime has one for the weights of each batch norm."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def quantise(
    exported: Exported, path: str | Path, batches: Iterable[tuple[Tensor, Tensor]]
) -> Exported:
    """Writes an int8 version of an ONNX file, and opens it.

    Weights have a scale per channel, activations a scale per tensor that the extremes on the
    calibration images set.

    Args:
        exported: of `kdnb.deploy.formats`, in ONNX.
        path: the new file.
        batches: normalised training images for calibration, as `check_exported` takes them.

    Raises InputError for a missing package and for a file that cannot be written.
    """
    require_packages()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.inputs = (exported.as_input(images) for images, *_ in batches)

        def get_next(self) -> dict | None:
            images = next(self.inputs, None)
            return None if images is None else {"images": images.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        fused, quantised = Path(folder, "fused.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(exported.path, fused, skip_symbolic_shape=True)
        quantize_static(
            fused,
            quantised,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # 7 bits for weights: CPUs without VNNI overflow with 8
        )
        write_atomically(Path(path), quantised.read_bytes())
    return open_exported(path)
