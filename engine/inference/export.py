"""Writes the model of a run to a file for deployment, and compares the file with the checkpoint.

A file contains `LitClassifier.forward` in float32: normalization, network, and the mean of the members of an ensemble. It
takes inputs in the units of the data and returns logits.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from engine.build import component_class, make
from engine.contracts import DataError, UserError, map_tensors
from engine.inference.trained_run import TrainedRun

# B batch, T tokens, K classes

Logits = Callable[[Any], Tensor]  # maps inputs, as `deployed_inputs` returns them, to logits (B, K)
PART_SIZES = (1, 7)  # batch sizes that are compared besides those of the evaluation


class ExportError(UserError):
    """An exported file does not agree with the checkpoint, or the int8 file is too slow or not accurate enough."""


@dataclass(frozen=True)
class Comparison:
    """The logits of a file, compared with the logits of the checkpoint on a test set.

    Attributes:
        num_rows: Number of rows.
        largest_difference: Largest absolute difference of two logits; NaN if a logit is NaN.
        largest_logit: Largest absolute logit of the checkpoint.
        equal_classes: Fraction of rows with the same class.
        num_wrong: Number of rows with another class, although the two largest logits of the checkpoint are not tied: they
            differ by more than the tolerance.
        checkpoint_accuracy: Accuracy of the checkpoint.
        accuracy: Accuracy of the file.
    """

    num_rows: int
    largest_difference: float
    largest_logit: float
    equal_classes: float
    num_wrong: int
    checkpoint_accuracy: float
    accuracy: float


def load_model(run: TrainedRun) -> Any:
    """Load the model of a run in float32 on the CPU. The precision of the training does not matter.

    Raises:
        BrokenCheckpointError: if the checkpoint is damaged.
    """
    model = component_class(run.config, "model").load_from_checkpoint(run.checkpoint, "cpu")
    # `torch.export.save` warns about weights in another order, such as channels-last
    return model.float().eval().requires_grad_(False).to(memory_format=torch.contiguous_format)


def load_data(run: TrainedRun) -> Any:
    """Return the datamodule of a run with its data.

    Raises:
        UserError: if the data cannot be read.
    """
    try:
        datamodule = make(run.config, "data", seed=run.config["seed"])
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.setup("test")
    except DataError as error:
        raise run.config.option_error("data", error) from error
    return datamodule


def first_inputs(batches: Iterable[Any]) -> Any:
    """Return the inputs of the first batch, as `deployed_inputs` does.

    Raises:
        DataError: if there is no batch.
    """
    for inputs, _ in batches:
        return deployed_inputs(inputs)
    raise DataError("the test set has no rows, so an exported file cannot be compared with the checkpoint")


def deployed_inputs(inputs: Any) -> Any:
    """Return the inputs of a batch as an exported file takes them. Tokens get a mask (B, T) of int64 if they have none."""
    if not isinstance(inputs, Mapping):
        return inputs
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).long()
    return {"input_ids": inputs["input_ids"], **inputs, "attention_mask": mask}


def trace(model: Any, inputs: Any) -> ExportedProgram:
    """Return the graph of a model for batches of any size and texts of any length.

    Args:
        model: The model.
        inputs: Inputs of a batch, as `deployed_inputs` returns them.
    """
    example = map_tensors(lambda values: values[:1].repeat_interleave(2, 0), inputs)  # one row would fix the batch size
    shapes: Any = {0: Dim("batch")}
    if isinstance(example, Mapping):
        axes = {0: Dim("batch"), 1: Dim("length", max=model.hparams["max_length"])}
        shapes = dict.fromkeys(example, axes)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes={"inputs": shapes})


def write_onnx(model: Any, inputs: Any, path: Path, description: Mapping[str, Any]) -> None:
    """Write an ONNX file. The arguments are those of `write`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists operators of packages that are not installed
    names = list(inputs) if isinstance(inputs, Mapping) else ["inputs"]
    axes = {0: "batch", 1: "length"} if isinstance(inputs, Mapping) else {0: "batch"}
    shapes: Any = [axes, *[None] * (len(names) - 1)]  # names of axes; further inputs share the axes of the first input
    program = torch.onnx.export(
        trace(model, inputs), input_names=names, output_names=["logits"], dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(as_texts(description))
    program.save(path)


def write_torch_export(model: Any, inputs: Any, path: Path, description: Mapping[str, Any]) -> None:
    """Write an archive of `torch.export`. The arguments are those of `write`."""
    torch.export.save(trace(model, inputs), path, extra_files={"metadata.json": json.dumps(description)})


def write_safetensors(model: Any, inputs: Any, path: Path, description: Mapping[str, Any]) -> None:
    """Write the weights and the arguments of the model's constructor. The arguments are those of `write`."""
    from safetensors.torch import save

    weights = {name: weight.clone() for name, weight in model.state_dict().items()}  # a file cannot share memory
    path.write_bytes(save(weights, as_texts({**description, "model_arguments": dict(model.hparams)})))


def read_onnx(path: Path, model: Any) -> Logits:
    """Return the model in an ONNX file as a function. ONNX Runtime gets as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def logits(inputs: Any) -> Tensor:
        arrays = {name: (inputs[name] if isinstance(inputs, Mapping) else inputs).numpy() for name in names}
        return torch.from_numpy(session.run(["logits"], arrays)[0])

    return logits


def read_torch_export(path: Path, model: Any) -> Logits:
    """Return the model in an archive of `torch.export` as a function."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.9 warns of its own buffer
        return torch.export.load(path).module()


def read_safetensors(path: Path, model: Any) -> Logits:
    """Return the model in a safetensors file. Only the class of `model` is used."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        arguments = json.loads(file.metadata()["model_arguments"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file has no __iter__
    loaded = type(model)(**arguments).eval().requires_grad_(False)
    loaded.load_state_dict(weights)
    return loaded


WRITERS = {".onnx": write_onnx, ".pt2": write_torch_export, ".safetensors": write_safetensors}
READERS = {".onnx": read_onnx, ".pt2": read_torch_export, ".safetensors": read_safetensors}


def write(model: Any, inputs: Any, path: Path, description: Mapping[str, Any]) -> None:
    """Write a model in the format of the suffix of a file.

    Args:
        model: The model, as `load_model` returns it.
        inputs: Inputs of a batch, as `deployed_inputs` returns them.
        path: The new file.
        description: Plain values that become metadata of the file.
    """
    WRITERS[path.suffix](model, inputs, path, description)


def read(path: Path, model: Any) -> Logits:
    """Return the model in a file as a function. A safetensors file needs a `model` of its class."""
    return READERS[path.suffix](path, model)


def as_texts(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a description whose values are strings. Other values are written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}


@torch.no_grad()
def compare(model: Any, exported: Logits, batches: Iterable[Any], tolerance: float) -> Comparison:
    """Compare the logits of a file with those of the model on all batches of a test set.

    The first and the last rows of each batch are also computed in batches of `PART_SIZES`.

    Args:
        model: The model in the checkpoint.
        exported: The model in the file.
        batches: Pairs of inputs and labels.
        tolerance: Difference of the two largest logits up to which two classes are tied.
    """
    parts = [slice(None), slice(PART_SIZES[0]), slice(-PART_SIZES[1], None)]
    difference, largest = torch.zeros(()), torch.zeros(())
    num_rows = num_equal = num_wrong = num_right = num_right_exported = 0
    for inputs, labels in batches:
        expected, given = model(inputs), deployed_inputs(inputs)  # (B, K)
        whole, *others = (exported(map_tensors(itemgetter(part), given)) for part in parts)
        for part, found in zip(parts, (whole, *others), strict=True):
            difference = torch.maximum(difference, (found - expected[part]).abs().max())  # NaN if one of them is NaN
        largest = torch.maximum(largest, expected.abs().max())
        best = expected.topk(2).values
        is_tied, is_equal = best[:, 0] - best[:, 1] <= tolerance, whole.argmax(1) == expected.argmax(1)
        num_rows, num_equal = num_rows + len(labels), num_equal + int(is_equal.sum())
        num_wrong += int((~is_equal & ~is_tied).sum())
        num_right += int((expected.argmax(1) == labels).sum())
        num_right_exported += int((whole.argmax(1) == labels).sum())
    return Comparison(
        num_rows, float(difference), float(largest), num_equal / num_rows, num_wrong,
        num_right / num_rows, num_right_exported / num_rows,
    )  # fmt: skip


def check_agreement(found: Comparison, tolerance: float) -> None:
    """Raise an `ExportError` if a file does not agree with the checkpoint."""
    if not found.largest_difference <= tolerance or found.num_wrong:  # NaN is not below a tolerance
        numbers = f"logits differ by up to {found.largest_difference:.2g} (tolerance {tolerance:g})"
        classes = f"{found.equal_classes:.2%} of {found.num_rows:,} test rows have the same class"
        accuracy = f"accuracy {found.accuracy:.2%} instead of {found.checkpoint_accuracy:.2%}"
        raise ExportError(f"the exported file does not agree with the checkpoint: {numbers}, {classes}, {accuracy}")


def summary(found: Comparison) -> str:
    """Return a comparison as text."""
    return (
        f"{found.num_rows:,} rows, largest difference of logits {found.largest_difference:.2g}, equal classes"
        f" {found.equal_classes:.2%}, accuracy {found.accuracy:.2%} (checkpoint {found.checkpoint_accuracy:.2%})"
    )
