"""Quantizes an ONNX file to int8, and measures what this gains and loses.

Networks with convolutions are quantized statically: the ranges of their activations come from training rows. Other networks
are quantized dynamically: the ranges are computed for each batch, because activations of transformers have outliers, which
make fixed ranges inexact (Bondarenko et al. 2021, https://arxiv.org/abs/2109.12948).
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.contracts import plain_training_batches
from engine.inference.export import Comparison, Logits, deployed_inputs, read
from engine.training.hardware import cpu_features

CALIBRATION_ROWS = 512
MEASURED_ROWS = 512
REPETITIONS = 7
CPU_FEATURES = ("avx2", "avx512_vnni", "amx_int8")  # instructions that speed up int8


@dataclass(frozen=True)
class Measurement:
    """What a model achieves on this machine.

    Attributes:
        accuracy: On the test set.
        num_bytes: Size of the file; None for a model that is not in a file.
        rows_per_second: Median speed on batches of the test set.
    """

    accuracy: float
    num_bytes: int | None
    rows_per_second: float


def quantize(source: Path, path: Path, batches: Iterable[Any]) -> None:
    """Write an ONNX file with int8 weights, which have a scale per channel.

    Args:
        source: A float32 ONNX file.
        path: The new file.
        batches: Training batches without augmentation, for the ranges of activations.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Yields the inputs of each batch by name."""

        def __init__(self) -> None:
            self.inputs = calibration_inputs(batches)

        def get_next(self) -> Any:
            return next(self.inputs, None)

    prepared = path.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if any(node.op_type == "Conv" for node in onnx.load(prepared).graph.node):
        quantize_static(prepared, path, Reader(), per_channel=True, op_types_to_quantize=["Conv", "MatMul", "Gemm"])
    else:
        quantize_dynamic(prepared, path, per_channel=True)
    prepared.unlink()


def calibration_inputs(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the inputs of batches as named arrays, until there are at least `CALIBRATION_ROWS` rows."""
    num_rows = 0
    for inputs, labels in batches:
        given = deployed_inputs(inputs)
        tensors = given if isinstance(given, Mapping) else {"inputs": given}
        yield {name: values.numpy() for name, values in tensors.items()}
        if (num_rows := num_rows + len(labels)) >= CALIBRATION_ROWS:
            return


def training_batches(datamodule: Any, seed: int) -> Any:
    """Return shuffled training batches. Batches of this project are not augmented."""
    torch.manual_seed(seed)  # determines the order of an ordinary DataLoader
    return plain_training_batches(datamodule)


def measure(model: Any, files: Mapping[Path, Comparison], batches: Iterable[Any]) -> dict[str, Measurement]:
    """Measure a model in PyTorch and in files. The names of the result are PyTorch and those of the files.

    Args:
        model: The model.
        files: The files, each with its comparison with the model.
        batches: Batches of the test set.
    """
    speed, *speeds = rows_per_second([model, *(read(path, model) for path in files)], batches)
    first = next(iter(files.values()))
    measured = {"PyTorch": Measurement(first.checkpoint_accuracy, None, speed)}
    for (path, found), speed in zip(files.items(), speeds, strict=True):
        measured[path.name] = Measurement(found.accuracy, path.stat().st_size, speed)
    return measured


@torch.no_grad()
def rows_per_second(functions: Sequence[Logits], batches: Iterable[Any]) -> list[float]:
    """Return how many rows each function computes in a second: the median of `REPETITIONS`, measured in turn.

    Args:
        functions: The functions.
        batches: Batches of a test set. At least `MEASURED_ROWS` rows are used, if there are so many.
    """
    chosen, num_rows = [], 0
    for inputs, labels in batches:
        chosen.append(deployed_inputs(inputs))
        if (num_rows := num_rows + len(labels)) >= MEASURED_ROWS:
            break
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(1 + REPETITIONS):
        for function, durations in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            for inputs in chosen:
                function(inputs)
            durations.append(time.perf_counter() - begin)
    return [num_rows / statistics.median(durations[1:]) for durations in seconds]  # the first one is a warm-up


def refusal(fp32: Measurement, int8: Measurement, max_loss: float) -> str | None:
    """Return why the quantized file must be deleted; None to keep it. `max_loss` is in percentage points."""
    if (lost := 100 * (fp32.accuracy - int8.accuracy)) > max_loss:
        loss = f"the int8 model loses {lost:.2f} percentage points of accuracy, and --max-loss is {max_loss:g}"
        return f"--int8: {loss}; only the fp32 file was written"
    if int8.rows_per_second < fp32.rows_per_second:
        speeds = f"{int8.rows_per_second:,.0f} rows per second, and fp32 has {fp32.rows_per_second:,.0f}"
        return f"--int8: the int8 model is slower on this machine ({speeds}); only the fp32 file was written"
    return None


def describe_machine() -> dict[str, Any]:
    """Return what the measured speeds depend on, as plain values."""
    found = cpu_features()
    features = [name for name in CPU_FEATURES if found.get(name)]
    return {"cpu": found.get("cpu_name", ""), "int8_instructions": features, "threads": torch.get_num_threads()}
