"""Describes an exported model: metadata for programs, and a page with the code that loads it."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

from engine.contracts import DataSpec
from engine.inference.trained_run import TrainedRun
from engine.runs.run_index import read_mapping

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "transformers")
TABLE = "numbers as they are, NaN for a missing value; a category is 1 + its index in columns, 0 if it is unknown or missing"
TOKENS = {
    "input_ids": "token ids",
    "attention_mask": "1 for tokens, 0 for padding",
    "token_type_ids": "0 in the first text, 1 in the second text",
}

ONNX = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime$imports

metadata = json.loads(Path("$file.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession("$file")
$example
logits = session.run(["logits"], inputs)[0]"""

TORCH_EXPORT = """\
import json
from pathlib import Path

import numpy as np
import torch$imports

metadata = json.loads(Path("$file.json").read_text(encoding="utf-8"))
model = torch.export.load("$file").module()
$example
tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
logits = model(tensors.get("inputs", tensors)).detach()"""

SAFETENSORS = """\
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open$imports

from $module import $kind

metadata = json.loads(Path("$file.json").read_text(encoding="utf-8"))
with safe_open("$file", "pt") as file:
    arguments = json.loads(file.metadata()["model_arguments"])
    weights = {key: file.get_tensor(key) for key in file.keys()}
model = $kind(**arguments).eval()
model.load_state_dict(weights)
$example
tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
logits = model(tensors.get("inputs", tensors)).detach()"""

CODE = {  # suffix of a file -> required software, and code
    ".onnx": ("The code needs neither PyTorch nor the project that trained the model", ONNX),
    ".pt2": ("The code needs PyTorch, but not the project that trained the model", TORCH_EXPORT),
    ".safetensors": (
        "The code needs the project that trained the model: the file contains only the weights",
        SAFETENSORS,
    ),
}
NUMBERS = """\
inputs = {"inputs": np.zeros((2, $shape), "$dtype")}  # your data"""
COLUMNS = """\

def encode(value, categories):
    if value is None:  # missing
        return float("nan")
    if not categories:  # a number
        return value
    return 1 + categories.index(value) if value in categories else 0

row = $row  # other columns are missing
values = [encode(row.get(column["name"]), column["categories"]) for column in metadata["columns"]]
inputs = {"inputs": np.array([values], "float32")}"""
TEXTS = """\
encoded = Tokenizer.from_file("$file.tokenizer.json").encode_batch($texts)
inputs = {"input_ids": np.array([row.ids for row in encoded])}
inputs["attention_mask"] = np.array([row.attention_mask for row in encoded])"""
PAIRS = """
inputs["token_type_ids"] = np.array([row.type_ids for row in encoded])"""


def describe(run: TrainedRun, model: Any, spec: DataSpec, inputs: Any) -> dict[str, Any]:
    """Return the metadata of a model as plain values: classes, inputs, normalization, metrics and versions.

    Args:
        run: The run.
        model: Its model.
        spec: Its data.
        inputs: Inputs of a batch, as `engine.inference.export.deployed_inputs` returns them.
    """
    tensors = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    described: list[dict[str, Any]] = []
    for name, values in tensors.items():
        shape = ["batch", *(["length"] if name in TOKENS else values.shape[1:])]
        dtype = str(values.dtype).removeprefix("torch.")
        described.append({"name": name, "dtype": dtype, "shape": shape, "content": _content(name, spec, dtype)})
    if spec.modality == "image":
        described[0]["content"] += f"; predict.py makes them with Pillow: `{pillow_code(spec, run.config['data'])}`"
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", spec.num_classes]}
    result: dict[str, Any] = {
        "run": "/".join(run.folder.resolve().parts[-2:]),
        "modality": spec.modality,
        "class_names": model.class_names,
        "inputs": described,
        "outputs": [{**logits, "content": "one logit per class; softmax gives probabilities"}],
    }
    if spec.categories is not None:
        pairs = zip(spec.feature_names, spec.categories, strict=True)
        result["columns"] = [{"name": name, "categories": list(categories)} for name, categories in pairs]
    elif spec.feature_names:
        result["feature_names"] = list(spec.feature_names)
    if spec.modality == "tokens":
        result["max_length"] = spec.max_length
    elif spec.categories is None:
        mean, std = (values.flatten().tolist() for values in (model.input_mean, model.input_std))
        result["normalization"] = {"mean": mean, "std": std, "content": "(inputs - mean) / std is part of the model"}
    metrics = read_mapping(run.folder / "metrics.json") or {}
    result["test_metrics"] = {name: value for name, value in metrics.items() if name.startswith("test")}
    result["versions"] = {package: found for package in PACKAGES if (found := _version(package))}
    return result


def write(run: TrainedRun, model: Any, spec: DataSpec, description: Mapping[str, Any], path: Path) -> None:
    """Write the metadata of an exported file, a page with code and, for texts, the tokenizer, to the folder of the file.

    Args:
        run: The run.
        model: Its model.
        spec: Its data.
        description: Plain values.
        path: The file.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    path.with_name(f"{path.name}.json").write_text(text, encoding="utf-8")
    path.with_name(f"{path.name}.md").write_text(page(model, description, path.name), encoding="utf-8")
    source = run.folder / "tokenizer/tokenizer.json"
    if source.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(source))
        tokenizer.enable_truncation(run.config["data"].get("max_length", spec.max_length))
        tokenizer.enable_padding(pad_id=spec.pad_id, pad_token=tokenizer.id_to_token(spec.pad_id))
        tokenizer.save(str(path.with_name(f"{path.name}.tokenizer.json")))


def page(model: Any, description: Mapping[str, Any], name: str) -> str:
    """Return a page in Markdown with code that loads a file and computes classes.

    Args:
        model: The model.
        description: As `describe` returns it.
        name: Name of the file; its suffix is its format.
    """
    needs, code = CODE[Path(name).suffix]
    names = {"file": name, "module": type(model).__module__, "kind": type(model).__name__}
    example = _example(description, name)
    imports = "\nfrom tokenizers import Tokenizer" if description["modality"] == "tokens" else ""
    code = Template(code).substitute(names, example=example, imports=imports)
    tensors = (*description["inputs"], *description["outputs"])
    rows = [f"| `{t['name']}` | {t['dtype']} | {', '.join(map(str, t['shape']))} | {t['content']} |" for t in tensors]
    accuracy = description["test_metrics"].get("test/accuracy")
    tested = "" if accuracy is None else f" Its test accuracy is {accuracy:.2%}."
    return f"""# {name}

The model of the run {description["run"]}.{tested} `{name}.json` contains the class names, the inputs and the normalization.

| tensor | type | shape | content |
|---|---|---|---|
{chr(10).join(rows)}

{needs}:

```python
{code}
print([metadata["class_names"][number] for number in logits.argmax(1).tolist()])
```
"""


def _example(description: Mapping[str, Any], name: str) -> str:
    """Return code that makes `inputs`, a dictionary of arrays, for the file `name`."""
    first, *others = description["inputs"]
    if columns := description.get("columns"):
        row = {column["name"]: next(iter(column["categories"]), 1.5) for column in columns[:3]}
        return COLUMNS.replace("$row", json.dumps(row, ensure_ascii=False))
    if description["modality"] == "tokens":
        is_pair = any(tensor["name"] == "token_type_ids" for tensor in others)
        texts = '[("a text", "its pair"), ("a longer text", "a pair")]' if is_pair else '["a text", "a longer text"]'
        return Template(TEXTS + PAIRS if is_pair else TEXTS).substitute(file=name, texts=texts)
    return Template(NUMBERS).substitute(shape=", ".join(map(str, first["shape"][1:])), dtype=first["dtype"])


def pillow_code(spec: DataSpec, data: Mapping[str, Any]) -> str:
    """Return the code with which predict.py scales a picture `image` of any size."""
    side = spec.input_shape[-1]
    arguments, colour = f"({side}, {side}), Image.Resampling.BICUBIC", data.get("background", "black")
    upright = "ImageOps.exif_transpose(image)"
    match data.get("fit", "crop"):
        case "crop":
            return f"ImageOps.fit({upright}, {arguments})"
        case "pad":
            return f"ImageOps.pad({upright}, {arguments}, color='{colour}')"
    return f"{upright}.resize({arguments})"


def _content(name: str, spec: DataSpec, dtype: str) -> str:
    if spec.modality == "image" and dtype == "uint8":
        return "pixels from 0 to 255"
    if spec.categories is not None:
        return TABLE
    names = f": {', '.join(spec.feature_names)}" if spec.feature_names else ""
    return TOKENS.get(name, f"numbers in the units of the data{names}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
