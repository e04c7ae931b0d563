"""Writes predictions to a CSV, JSON Lines or Parquet file that is complete or does not exist.

Predictions are appended to FILE.part, which gets its final name at the end. FILE.part.json says how far it is complete, so
that an interrupted prediction can go on.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.predictor import Predictions

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Columns:
    """The columns of the output.

    Attributes:
        name: Name of the first column: ``row`` or ``file``.
        top: Number of most probable classes that are written; None for the probabilities of all classes.
        has_problems: Whether the last column says why a row could not be read.
        explained: ``features`` or ``tokens`` to write attributions; None to write none.
        feature_names: Names of the features, for their attributions.
        threshold: Probability from which the second of two classes is predicted; None to predict the more probable class.
    """

    name: str
    top: int | None
    has_problems: bool
    threshold: float | None = None
    explained: str | None = None
    feature_names: Sequence[str] = ()

    def table(self, found: Predictions) -> Any:
        """Return predictions as a table of pyarrow."""
        import pyarrow as pa

        class_names, probabilities = pa.array(found.class_names), found.probabilities
        is_readable = np.ones(len(found), bool)
        is_readable[list(found.problems)] = False

        def names(classes: np.ndarray) -> Any:
            return class_names.take(pa.array(classes, mask=~is_readable))

        def numbers(values: np.ndarray) -> Any:
            return pa.array(np.ascontiguousarray(values), pa.float32(), mask=~is_readable)

        columns = {self.name: pa.array(found.names)}
        if self.threshold is None:
            order = np.argsort(-probabilities, 1, kind="stable")[:, : self.top or 1]
        else:
            second = (probabilities[:, 1] >= self.threshold).astype(np.int64)
            order = np.stack([second, 1 - second], 1)
        best = np.take_along_axis(probabilities, order, 1)
        columns["predicted"], columns["probability"] = names(order[:, 0]), numbers(best[:, 0])
        if self.top is None:
            for number, name in enumerate(found.class_names):
                columns[f"probability_{name}"] = numbers(probabilities[:, number])
        for place in range(1, min(self.top or 1, len(found.class_names))):
            columns[f"predicted_{place + 1}"] = names(order[:, place])
            columns[f"probability_{place + 1}"] = numbers(best[:, place])
        if self.threshold is not None:
            columns["threshold"] = pa.array(np.full(len(found), self.threshold, np.float32))
        columns |= self._explanations(found)
        if self.has_problems:
            columns["problem"] = pa.array([found.problems.get(row) for row in range(len(found))], pa.string())
        return pa.table(columns)

    def _explanations(self, found: Predictions) -> dict[str, Any]:
        """Return the columns of the attributions: one for each feature, or one with all tokens."""
        import pyarrow as pa

        known = [found.explanations[row] if found.explanations else None for row in range(len(found))]
        if self.explained == "features":
            values = [None if each is None else each.attributions.numpy() for each in known]
            return {
                f"attribution_{name}": pa.array([None if row is None else row[i] for row in values], pa.float32())
                for i, name in enumerate(self.feature_names)
            }
        if self.explained == "tokens":
            kind = pa.list_(pa.struct([("token", pa.string()), ("attribution", pa.float32())]))
            rows = [each and list(zip(each.names, each.attributions.tolist(), strict=True)) for each in known]
            return {"attributions": pa.array(rows, kind)}
        return {}


class Output:
    """Writes predictions to a file, or to the standard output.

    Args:
        path: A file that ends with one of `FORMATS`; None for CSV on the standard output.
        columns: Its columns.
        identity: What the predictions depend on, as text. An interrupted prediction goes on only if it is equal.
        resume: Whether to go on with an interrupted prediction.

    Attributes:
        num_rows: Number of rows that have been written.

    Raises:
        ConfigError: if the file cannot be written, or if there is nothing to resume.
    """

    def __init__(self, path: Path | None, columns: Columns, identity: Sequence[str], resume: bool) -> None:
        self.path, self.columns, self.num_rows = path, columns, 0
        self.identity = [*identity, str(columns)]
        self._kind = ".csv" if path is None else path.suffix.lower()
        self._file: BinaryIO
        if path is None:
            self._file = sys.stdout.buffer
            return
        self.part, self.state = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        size = self._resume() if resume else 0
        try:
            self._file = self.part.open("r+b" if resume else "wb")
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise ConfigError(COMMAND_LINE, "--output", f"{path} cannot be written ({error.strerror})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self.path is None:
            return
        self._file.close()
        if kind is None:
            self._finish()

    def write(self, found: Predictions) -> None:
        """Append predictions."""
        self._file.write(self._encoded(self.columns.table(found)))
        self._file.flush()
        self.num_rows += len(found)
        if self.path is not None:
            state = {"rows": self.num_rows, "bytes": self._file.tell(), "identity": self.identity}
            new = self.state.with_suffix(".new")
            new.write_text(json.dumps(state), encoding="utf-8")
            os.replace(new, self.state)

    def _resume(self) -> int:
        """Read how far the interrupted prediction is complete. Returns the size of that part of the file."""
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            self.num_rows, size = int(state["rows"]), int(state["bytes"])
            is_complete = self.part.stat().st_size >= size
        except (OSError, ValueError, LookupError, TypeError):
            raise ConfigError(
                COMMAND_LINE, "--resume", f"there is no interrupted {self.part}", "leave it out"
            ) from None
        if state["identity"] != self.identity or not is_complete:
            problem = f"{self.part} was begun with another input, model or option"
            raise ConfigError(COMMAND_LINE, "--resume", problem, "leave it out to begin again")
        return size

    def _encoded(self, table: Any) -> bytes:
        import pyarrow as pa
        import pyarrow.csv

        sink = pa.BufferOutputStream()
        if self._kind == ".csv":
            table = _without_lists(table)
            is_first = self.num_rows == 0
            try:  # "needed" quotes all texts, so it is used only for texts with quotes, commas or line breaks
                options = {"quoting_style": "none", "quoting_header": "none"}
                pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=is_first, **options))
            except pa.ArrowInvalid:
                sink = pa.BufferOutputStream()
                pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=is_first))
        elif self._kind == ".jsonl":
            rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
            sink.write("".join(rows).encode())
        else:  # the messages of an Arrow stream, which `_finish` converts
            if self.num_rows == 0:
                sink.write(table.schema.serialize())
            for batch in table.to_batches():
                sink.write(batch.serialize())
        return bytes(sink.getvalue())

    def _finish(self) -> None:
        assert self.path is not None
        if self._kind == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            complete = self.part.with_suffix(".new")
            with self.part.open("rb") as file:
                reader = pa.ipc.open_stream(file)
                with pq.ParquetWriter(complete, reader.schema) as writer:
                    for batch in reader:
                        writer.write_batch(batch)
            os.replace(complete, self.part)
        os.replace(self.part, self.path)
        self.state.unlink(missing_ok=True)


def _without_lists(table: Any) -> Any:
    """Replace lists, which CSV does not have, by JSON."""
    import pyarrow as pa

    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            rows = [row and [[*pair.values()] for pair in row] for row in table[i].to_pylist()]
            texts = [None if row is None else json.dumps(row, ensure_ascii=False) for row in rows]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table
