"""The runs that there are, how each ended and what came of it, read from their folders: there is no index and no server.

``metrics.json`` says that a run is finished, the lock on its config that it is at work, ``status.json`` how else it ended. A
run without any of them was killed.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from engine.contracts import COMMAND_LINE, ConfigError
from engine.runs.run_lock import is_running, try_lock

Status = Literal["running", "finished", "failed", "interrupted"]
STATUSES: tuple[Status, ...] = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        name: CONFIG/NAME.
        folder: Where it lies.
        status: How it stands.
        began: Seconds since 1970.
        figures: Of ``metrics.json``; empty before the run is finished.
        reason: Why it ended before its end.
    """

    name: str
    folder: Path
    status: Status
    began: float
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        began = datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds")
        told = {"run": self.name, "folder": str(self.folder), "status": self.status, "began": began}
        return {**told, "reason": self.reason, "metrics": self.figures}


def runs(root: Path, patterns: Sequence[str] = (), words: Sequence[str] = ()) -> list[Run]:
    """Those below `root`, the newest first.

    Args:
        root: Folder of all runs.
        patterns: A config's name, a run's, or either with ``*``, or their folders; any for none.
        words: What else may have been meant.

    Raises:
        ConfigError: if there are patterns, and no run fits any.
    """
    everything = list(_folders(root))
    wanted = [_meant(_below_root(root, one), {name for _, name, _ in everything}) for one in patterns]
    found = [
        read(folder, name, began)
        for folder, name, began in everything
        if not wanted or any(pattern.fullmatch(name) for pattern in wanted)
    ]
    if patterns and not found:
        names = {text for _, name, _ in everything for text in (name, name.partition("/")[0])} | {*words}
        meant = [one for text in patterns for one in near(text, names)]
        hint = f"did you mean {' or '.join(meant[:3])}?" if meant else f"python runs.py --root {root} shows all"
        raise ConfigError(COMMAND_LINE, " ".join(patterns), f"none of {len(everything)} runs below {root} fits", hint)
    return sorted(found, key=lambda run: -run.began)


def read(folder: Path, name: str, began: float) -> Run:
    """What the folder of a run says."""
    figures = json_mapping(folder / "metrics.json")
    if figures is not None:
        return Run(name, folder, "finished", began, figures)
    if is_running(folder):
        return Run(name, folder, "running", began)
    end = json_mapping(folder / "status.json") or {}
    status: Status = "failed" if end.get("status") == "failed" else "interrupted"
    return Run(name, folder, status, began, reason=str(end.get("reason") or "killed"))


def size(run: Run) -> int:
    """Bytes in its folder; what is linked does not count."""
    found = 0
    for parent, _, names in os.walk(run.folder):
        for name in names:
            with suppress(OSError):  # it is gone
                found += os.lstat(os.path.join(parent, name)).st_size
    return found


def delete(run: Run) -> bool:
    """Delete its folder, and that of its config with the last one; whether it was still as `run` says.

    Raises:
        ConfigError: if it cannot be deleted.
    """
    with try_lock(run.folder) as is_free:
        finished = (run.folder / "metrics.json").exists()
        went_on = is_running(run.folder) and not finished if is_free is None else not is_free
        if went_on or finished != (run.status == "finished"):
            return False
        try:
            shutil.rmtree(run.folder)
        except OSError as error:
            raise ConfigError(str(run.folder), "", f"cannot be deleted ({error.strerror})") from None
    with suppress(OSError):  # it has other runs
        run.folder.parent.rmdir()
    return True


def find(root: Path, text: str) -> Run:
    """The run that `text` means: its folder, CONFIG/NAME, or a part of that which no other has.

    Raises:
        ConfigError: if there is none, or several.
    """
    text = _below_root(root, text)
    everything = {name: (folder, began) for folder, name, began in _folders(root)}
    if (path := Path(text)).joinpath("config.yaml").is_file():
        config, name = path.resolve().parts[-2:]
        return read(path, f"{config}/{name}", _began(name, path.joinpath("config.yaml").stat().st_mtime))
    names = [name for name in everything if name == text or name.endswith(f"/{text}")]
    names = names or [name for name in everything if text and text in name]
    if len(names) == 1:
        return read(everything[names[0]][0], names[0], everything[names[0]][1])
    if names:
        listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(COMMAND_LINE, text, f"{len(names)} runs have that in their name", listed)
    hint = f"did you mean {' or '.join(meant)}?" if (meant := near(text, everything)) else "python runs.py shows all"
    raise ConfigError(COMMAND_LINE, text or "''", f"no run below {root} has that in its name", hint)


def metric(found: Sequence[Run], name: str) -> list[tuple[Run, float]]:
    """The runs that have the metric `name`, with its value.

    Raises:
        ConfigError: if none of those that are finished has.
    """
    values = [(run, run.figures[name]) for run in found if is_number(run.figures.get(name))]
    if not values:
        known = sorted(key for key, _ in figures(found))
        meant = [one for one in known if name.rpartition("/")[2] in one] or near(name, known)
        hint = f"there are {', '.join((meant or known)[:12])}" if known else "no run is finished"
        raise ConfigError(COMMAND_LINE, name, "no finished run has this metric", hint)
    return values


def figures(found: Sequence[Run]) -> Iterator[tuple[str, list[float | None]]]:
    """Every number in their ``metrics.json``, but for those of single classes."""
    names = dict.fromkeys(key for run in found for key, value in run.figures.items() if is_number(value))
    for name in names:
        if not name.startswith("test_class_accuracy/"):
            values = [run.figures.get(name) for run in found]
            yield name, [value if is_number(value) else None for value in values]


def near(text: str, names: Iterable[str]) -> list[str]:
    """At most three of `names` that `text` may be a slip of; what lies in a folder may be meant by its name alone."""
    from difflib import get_close_matches

    short = {name.rpartition("/")[2]: name for name in names if "/" not in text} | {name: name for name in names}
    return list(dict.fromkeys(short[one] for one in get_close_matches(text, short)))


def _folders(root: Path) -> Iterator[tuple[Path, str, float]]:
    """Folder, name and beginning of every run; what is linked from elsewhere is none."""
    for config in _below(root):
        for entry in _below(config.path):
            try:
                found = os.stat(f"{entry.path}/config.yaml")
            except OSError:  # no run
                continue
            if stat.S_ISREG(found.st_mode):
                yield Path(entry.path), f"{config.name}/{entry.name}", _began(entry.name, found.st_mtime)


def _began(name: str, written: float) -> float:
    """By a run's name, if it is a time, as `engine.runs.run_folder` gives it: its files may have been copied since."""
    try:
        return datetime.strptime(name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return written


def _below(folder: str | Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [one for one in entries if one.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _below_root(root: Path, text: str) -> str:
    """CONFIG, CONFIG/NAME or a pattern of them, where `text` may name a folder."""
    text = text.rstrip("/") or text[:1]
    if "/" not in text:
        return text
    path, above = Path(text).resolve(), root.resolve()
    return str(path.relative_to(above)) if above in path.parents else text


def _meant(text: str, names: set[str]) -> "re.Pattern[str]":
    """The run of that name or the runs of that config, if there are any; else those of a pattern with ``*``."""
    if text in names or any(name.startswith(f"{text}/") for name in names):
        return re.compile(f"{re.escape(text)}(/.*)?", re.DOTALL)
    return re.compile(".*".join(map(re.escape, text.split("*"))) + "(/.*)?", re.DOTALL)


def json_mapping(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; empty if it is broken, null if it is missing."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_number(value: Any) -> bool:
    """Whether it is a float, which may be nan, or a whole number that fits into one."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
