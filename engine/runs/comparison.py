"""In what runs differ: their configs, and what else may explain another result."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.contracts import ConfigError
from engine.runs.run_index import Run, json_mapping

# of environment.json: what may explain a difference
FACTS = ("git_commit", "git_dirty", "packages", "device", "num_devices", "precision", "threads", "data_sha256")


def configs(found: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """The keys in which their configs differ, with the value of each.

    Raises:
        ConfigError: if one is broken.
    """
    yield from _differing([dict(_flat(_config(run.folder / "config.yaml"))) for run in found], "not there")


def environments(found: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """What else than the config may explain a difference."""
    facts = [json_mapping(run.folder / "environment.json") or {} for run in found]
    flat = [dict(_flat({name: one.get(name) for name in FACTS})) for one in facts]
    yield from _differing(flat, None)


def _config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(str(path), "", "is broken", "compare others")
    return content


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _differing(flat: Sequence[dict[str, Any]], absent: Any) -> Iterator[tuple[str, list[Any]]]:
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key, absent) for one in flat]
        if any(value != values[0] for value in values):
            yield key, values
