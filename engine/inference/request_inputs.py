"""Reads and checks the inputs of requests to a server, so that invalid inputs do not reach the model."""

import base64
import binascii
import json
import math
from typing import Any, Literal

from starlette.exceptions import HTTPException

from engine.inference.predictor import Predictor

MAX_INPUTS = 1000  # per request
MAX_CHARACTERS = 100_000  # per text

Kind = Literal["text", "text pair", "row", "features", "picture"]


class RequestInputs:
    """What a model takes as JSON.

    Args:
        predictor: The model.

    Attributes:
        kind: The kind of its inputs: a text, a pair of texts, a row of a table (a dictionary of columns), features (a list
            of numbers, or a dictionary if they have names), or a picture (a file in base64).
        columns: For a row and for features with names: the categories of each column; () for a column of numbers.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.spec = spec = predictor.spec
        self.columns: dict[str, tuple[str, ...]] = {}
        self.kind: Kind
        if spec.modality == "tokens":
            self.kind = "text" if predictor.run.config["data"].get("text_pair_column") is None else "text pair"
        elif spec.modality == "image":
            self.kind = "picture"
        elif spec.categories is not None:
            self.kind, self.columns = "row", dict(zip(spec.feature_names, spec.categories, strict=True))
        else:
            self.kind, self.columns = "features", dict.fromkeys(predictor.datamodule.spec.feature_names, ())

    def describe(self) -> dict[str, Any]:
        """Return what a client needs to know, as JSON."""
        columns = [{"name": name, "categories": list(kinds) or None} for name, kinds in self.columns.items()]
        shape = list(self.spec.input_shape)
        return {"modality": self.spec.modality, "input": self.kind, "shape": shape, "columns": columns or None}

    def read(self, content_type: str, body: bytes, most: int = MAX_INPUTS) -> list[Any]:
        """Return the inputs of a request, as `ClassificationDataModule.take_inputs` takes them.

        Args:
            content_type: application/json for ``{"inputs": [...]}``, or image/* for the bytes of one picture.
            body: The request.
            most: Maximum number of inputs.

        Raises:
            HTTPException: if they do not fit the model. The detail is a message for the client.
        """
        if content_type.startswith("image/") and self.kind == "picture":
            return [body]
        if content_type.partition(";")[0].strip() != "application/json":
            pictures = ", or the bytes of a picture with its type" if self.kind == "picture" else ""
            raise HTTPException(415, f"the type of the content is {content_type!r}; send application/json{pictures}")
        try:
            # whole numbers become floats, because the time to read a whole number grows with the square of its digits
            content = json.loads(body, parse_int=float)
        except RecursionError:
            raise HTTPException(400, "the JSON is nested too deeply") from None
        except ValueError as error:
            raise HTTPException(400, f"the request is not JSON ({error})") from None
        if not isinstance(content, dict) or content.keys() != {"inputs"} or not isinstance(content["inputs"], list):
            raise HTTPException(400, 'the request is not {"inputs": [...]}')
        values = content["inputs"]
        if not 0 < len(values) <= most:
            allowed = "one input" if most == 1 else f"1 to {most:,} inputs"
            raise HTTPException(422, f"the request has {len(values):,} inputs; send {allowed}")
        inputs = []
        for number, value in enumerate(values):
            try:
                inputs.append(self._take(value))
            except ValueError as error:
                raise HTTPException(422, f"inputs[{number}]: {error}") from None
        return inputs

    def _take(self, value: Any) -> Any:
        """Return an input in the type of the datamodule.

        Raises:
            ValueError: if it does not fit the model.
        """
        match self.kind, value:
            case "text", str():
                return _words(value)
            case "text pair", [str(), str()]:
                return tuple(map(_words, value))
            case "picture", str():
                try:
                    return base64.b64decode(value, validate=True)
                except binascii.Error as error:
                    raise ValueError(f"the picture is not base64 ({error})") from None
            case "row" | "features", dict():
                row = self._row(value)
                return row if self.kind == "row" else list(row.values())
            case "features", list():
                (num_features,) = self.spec.input_shape
                if len(value) != num_features:
                    raise ValueError(f"{len(value)} numbers; the model takes {num_features}")
                return [_number(one) for one in value]
        names = {
            "text": "a string",
            "text pair": "a list of two strings",
            "row": "an object with the columns",
            "features": "a list of numbers or an object with the columns" if self.columns else "a list of numbers",
            "picture": "a string with the base64 code of a picture file",
        }
        raise ValueError(f"the model takes {names[self.kind]}")

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the values in the order of the columns."""
        if missing := [name for name in self.columns if name not in row]:
            raise ValueError(f"no column {missing[0]!r}; give null for a missing value")
        if unknown := [name for name in row if name not in self.columns]:
            raise ValueError(f"unknown column {unknown[0]!r}")
        result: dict[str, Any] = {}
        for name, categories in self.columns.items():
            try:
                if row[name] is None and self.kind == "row":
                    result[name] = None
                else:
                    result[name] = _text(row[name]) if categories else _number(row[name])
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from None
        return result


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("the value is not a string")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(value):,} characters; at most {MAX_CHARACTERS:,} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has an unpaired surrogate") from None
    return value


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return _text(text)


def _number(value: Any) -> float:
    if not isinstance(value, float) or not math.isfinite(value):  # whole numbers are floats, and bool is not
        raise ValueError("the value is not a finite number")
    return value
