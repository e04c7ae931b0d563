"""Finds runs and reads their state from their folders. There is no index file and no server.

A run with ``metrics.json`` is finished. Otherwise it is running if a process holds its lock; if not, ``status.json`` has the
reason why it ended. A run without any of them was killed.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from engine.contracts import COMMAND_LINE, ConfigError, listed
from engine.runs.run_lock import NAME, delete_locked_folder, is_running, lock_run

Status = Literal["running", "finished", "failed", "interrupted"]
STATUSES: tuple[Status, ...] = get_args(Status)
# keys at the top level of the config.yaml that a run writes, in this order
TOP_LEVEL = ["seed", "data", "model", "optimizer", "schedule", "trainer", "callbacks", "run"]
STUDY_FILE = "study.yaml"  # in the folder of a study
MAX_BYTES = 64_000_000  # largest file that is read


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: CONFIG/NAME.
        folder: Its folder.
        status: Its state.
        began: Time when it was created, in seconds since 1970.
        metrics: The content of ``metrics.json``; empty until the run is finished.
        reason: Why it ended early.
    """

    name: str
    folder: Path
    status: Status
    began: float
    metrics: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        began = datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds")
        state = {"run": self.name, "folder": str(self.folder), "status": self.status, "began": began}
        return {**state, "reason": self.reason, "metrics": self.metrics}


def find_runs(root: Path, patterns: Sequence[str] = (), commands: Sequence[str] = ()) -> list[Run]:
    """Return the runs below `root` that match a pattern, the newest first.

    Args:
        root: Folder of all runs.
        patterns: Names (CONFIG or CONFIG/NAME, ``*`` for any text) or folders; empty for all runs.
        commands: Other words that a pattern may be a misspelling of.
    """
    entries = list(_entries(root))
    names = {name for _, name, _ in entries}
    wanted = [_compile(_name_below(root, pattern), names) for pattern in patterns]
    found = [
        read_run(folder, name, began)
        for folder, name, began in entries
        if not wanted or any(pattern.fullmatch(name) for pattern in wanted)
    ]
    if patterns and not found:
        choices = {*names, *(name.partition("/")[0] for name in names), *commands}
        close = [choice for pattern in patterns for choice in similar_names(pattern, choices)]
        hint = f"did you mean {' or '.join(close[:3])}?" if close else f"python runs.py --root {root} shows all"
        hint = next(filter(None, (_study_hint(root, pattern) for pattern in patterns)), hint)
        problem = f"matches none of the {len(entries)} runs below {root}"
        raise ConfigError(COMMAND_LINE, " ".join(patterns), problem, hint)
    return sorted(found, key=lambda run: -run.began)


def find_studies(root: Path) -> list[Path]:
    """Return the folders of studies below `root`, the newest first."""
    files = [Path(entry.path) / STUDY_FILE for entry in _subfolders(root)]
    return [file.parent for file in sorted(filter(Path.is_file, files), key=lambda file: -file.stat().st_mtime)]


def find_study(root: Path, name: str) -> Path:
    """Return the folder of the study with a name below `root`, or with a path.

    Raises:
        ConfigError: if there is no such study.
    """
    for folder in (root / name, Path(name)):
        if (folder / STUDY_FILE).is_file():
            return folder
    names = [folder.name for folder in find_studies(root)]
    close = similar_names(name, names)
    hint = f"did you mean {close[0]}?" if close else f"studies: {listed(names)}" if names else "start one with study.py"
    raise ConfigError(COMMAND_LINE, "--study", f"{name} is not a study below {root}", hint)


def find_single_run(root: Path, text: str) -> Run:
    """Return the run with the folder or the name `text`, or the only run whose name contains `text`."""
    path, text = Path(text), _name_below(root, text)
    entries = {name: (folder, began) for folder, name, began in _entries(root)}
    if path.joinpath("config.yaml").is_file():  # also a run of a study below `root`
        config, name = path.resolve().parts[-2:]
        return read_run(path, f"{config}/{name}", _creation_time(name, path.joinpath("config.yaml").stat().st_mtime))
    names = [name for name in entries if name == text or name.endswith(f"/{text}")]
    names = names or [name for name in entries if text and text in name]
    if len(names) == 1:
        folder, began = entries[names[0]]
        return read_run(folder, names[0], began)
    if names:
        raise ConfigError(COMMAND_LINE, text, f"matches {len(names)} runs", listed(sorted(names)))
    close = similar_names(text, entries)
    hint = f"did you mean {' or '.join(close)}?" if close else "python runs.py shows all"
    hint = _study_hint(root, text) or hint
    raise ConfigError(COMMAND_LINE, text or "''", f"matches no run below {root}", hint)


def is_group(root: Path, text: str) -> bool:
    """Return whether `text` is a pattern with ``*``, or a config with several runs, by its name or its folder."""
    text = _name_below(root, text)
    names = [name for _, name, _ in _entries(root)]
    return text not in names and ("*" in text or sum(name.startswith(f"{text}/") for name in names) > 1)


def _study_hint(root: Path, text: str) -> str:
    """Return a hint if `text` begins with the name of a study; otherwise an empty string."""
    name = text.partition("/")[0]
    return f"{name} is a study: add --study {name}" if name and (root / name / STUDY_FILE).is_file() else ""


def read_run(folder: Path, name: str, began: float) -> Run:
    """Read the state of a run from its folder."""
    metrics = read_mapping(folder / "metrics.json")
    if metrics is None:
        if is_running(folder):
            return Run(name, folder, "running", began)
        metrics = read_mapping(folder / "metrics.json")  # the run may have finished meanwhile
    if metrics is not None:
        return Run(name, folder, "finished", began, metrics)
    end = read_mapping(folder / "status.json") or {}
    status: Status = "failed" if end.get("status") == "failed" else "interrupted"
    return Run(name, folder, status, began, reason=str(end.get("reason") or "killed"))


def folder_size(run: Run) -> int:
    """Return the size of a run's folder in bytes, without the targets of links."""
    total = 0
    for parent, _, names in os.walk(run.folder):
        for name in names:
            with suppress(OSError):  # deleted meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def delete_run(run: Run) -> bool:
    """Delete the folder of a run, and the folder of its config if it is empty then.

    Returns False without deleting anything if the run was resumed or has finished since it was read.
    """
    try:
        lock = lock_run(run.folder)
    except ConfigError:  # another process trains there
        return False
    is_finished = (run.folder / "metrics.json").exists()
    if is_finished != (run.status == "finished") or (lock is None and not is_finished and is_running(run.folder)):
        if lock is not None:
            lock.release()
        return False
    try:
        delete_locked_folder(run.folder, lock)
    except OSError as error:
        raise ConfigError(str(run.folder), "", f"cannot be deleted completely ({error.strerror})") from None
    with suppress(OSError):  # the config has other runs
        run.folder.parent.rmdir()
    return True


def metric_values(runs: Sequence[Run], metric: str) -> list[tuple[Run, float]]:
    """Return the runs that have a metric, with its value. At least one run must have it."""
    values = [(run, run.metrics[metric]) for run in runs if is_number(run.metrics.get(metric))]
    if not values:
        known = sorted({name for run in runs for name in metric_names(run)})
        close = [name for name in known if metric.rpartition("/")[2] in name] or similar_names(metric, known)
        hint = f"metrics: {listed(close or known, 12)}" if known else "no run is finished"
        raise ConfigError(COMMAND_LINE, metric, "no finished run has this metric", hint)
    return values


def metric_names(run: Run) -> list[str]:
    """Return the names of a run's metrics, without the accuracies of single classes."""
    names = [name for name, value in run.metrics.items() if is_number(value)]
    return [name for name in names if not name.startswith("test_class_accuracy/")]


def similar_names(text: str, names: Iterable[str]) -> list[str]:
    """Return at most three names with a similar spelling. Without a slash, `text` is also compared with their last part."""
    from difflib import get_close_matches

    choices = {name.rpartition("/")[2]: name for name in names if "/" not in text} | {name: name for name in names}
    return list(dict.fromkeys(choices[match] for match in get_close_matches(text, choices)))


def is_own(run: Run) -> bool:
    """Return whether this project created the folder of a run, that is, wrote its config and its lock.

    Other tools have files named config.yaml, and users copy a run's config. A run without its lock may still be training.
    """
    if not (run.folder / NAME).is_file():
        return False
    try:
        config = read_file(run.folder / "config.yaml")
    except OSError:
        return False
    return re.findall(rb"^(\w+):", config, re.MULTILINE) == [key.encode() for key in TOP_LEVEL]


def read_mapping(path: Path) -> dict[str, Any] | None:
    """Read a JSON object. Returns an empty dict if the file is broken, and None if it does not exist."""
    try:
        content = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises an OSError for a pipe, a device or a huge file, because reading it might take forever or too much memory.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise OSError(f"{path} is not a file of at most {MAX_BYTES:,} bytes")
        return file.read()


def is_number(value: Any) -> bool:
    """Return whether `value` is a float, which may be NaN, or an int of at most 64 bits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _entries(root: Path) -> Iterator[tuple[Path, str, float]]:
    """Yield folder, name and creation time of every run. Links are not followed."""
    for config in _subfolders(root):
        for run in _subfolders(config.path):
            try:
                status = os.stat(f"{run.path}/config.yaml")
            except OSError:  # not a run
                continue
            if stat.S_ISREG(status.st_mode):
                yield Path(run.path), f"{config.name}/{run.name}", _creation_time(run.name, status.st_mtime)


def _subfolders(folder: str | Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _creation_time(name: str, modified: float) -> float:
    """Return the time in the name of a run, because copied files have other times; `modified` if the name has no time."""
    try:
        seconds = datetime.strptime(name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return modified
    return seconds if 0 < seconds < 2**32 else modified


def _name_below(root: Path, text: str) -> str:
    """Return the part of a path below `root`; a `text` that is not such a path is returned unchanged."""
    text = text.rstrip("/") or text[:1]
    if "/" not in text:
        return text
    path, top = Path(text).resolve(), root.resolve()
    return str(path.relative_to(top)) if top in path.parents else text


def _compile(text: str, names: set[str]) -> "re.Pattern[str]":
    """Return a pattern for the run or config that is called `text` or, if no name is, a pattern with ``*`` as wildcard."""
    if text in names or any(name.startswith(f"{text}/") for name in names):
        return re.compile(f"{re.escape(text)}(/.*)?", re.DOTALL)
    return re.compile(".*".join(map(re.escape, text.split("*"))) + "(/.*)?", re.DOTALL)
