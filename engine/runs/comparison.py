"""The differences between runs: configs, environments and metrics."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.contracts import ConfigError
from engine.runs.run_index import Run, metric_names, read_file, read_mapping

Rows = Iterator[tuple[str, list[Any]]]  # a key, and its value in each run

# Facts of environment.json that may explain a difference between metrics.
FACTS = ("git_commit", "git_dirty", "packages", "device", "num_devices", "precision", "threads", "data_sha256")
NOT_SET = "(not set)"


def compare_configs(runs: Sequence[Run]) -> Rows:
    """Yield the keys in which the configs differ."""
    return _differences([dict(_flatten(read_config(run.folder / "config.yaml"))) for run in runs], NOT_SET)


def compare_environments(runs: Sequence[Run]) -> Rows:
    """Yield the facts of the environments that differ."""
    environments = [read_mapping(run.folder / "environment.json") or {} for run in runs]
    facts = [{name: environment.get(name) for name in FACTS} for environment in environments]
    return _differences([dict(_flatten(values)) for values in facts], None)


def compare_metrics(runs: Sequence[Run]) -> Rows:
    """Yield all metrics; the value is None in a run without the metric."""
    numbers = [{name: run.metrics[name] for name in metric_names(run)} for run in runs]
    for name in dict.fromkeys(name for values in numbers for name in values):
        yield name, [values.get(name) for values in numbers]


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a run's ``config.yaml``."""
    import yaml

    try:
        content = yaml.load(read_file(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(str(path), "", "cannot be read", "compare other runs")
    return content


def _flatten(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _differences(mappings: Sequence[dict[str, Any]], missing: Any) -> Rows:
    for key in dict.fromkeys(key for mapping in mappings for key in mapping):
        values = [mapping.get(key, missing) for mapping in mappings]
        if any(value != values[0] for value in values):
            yield key, values
