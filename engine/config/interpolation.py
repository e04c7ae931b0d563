"""Resolves ``${section.key}`` in a config: the value of another key that is written in it.

OmegaConf's resolvers are not used. They can read environment variables, so the run folder could contain a secret in plain
text.
"""

import re
from collections.abc import Iterator
from typing import Any

from engine.config.yaml_reader import MAX_BYTES, Section, Value, ambiguity_error
from engine.contracts import ConfigError

MAX_CHAIN = 100  # most keys in a chain in which each key refers to the next one
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")


def resolve_interpolation(tree: Section) -> None:
    """Replace every reference in `tree` by the value of the key that it names.

    Raises:
        ConfigError: if a reference is not of the form ``${section.key}``, is circular, or names a section or no key at all.
    """
    leaves = dict(_leaves(tree))
    resolved: set[str] = set()
    for key, value in leaves.items():
        if "${" in str(value.data):
            _resolve(key, leaves, resolved, ())


def _resolve(key: str, leaves: dict[str, Value], resolved: set[str], pending: tuple[str, ...]) -> Any:
    """Replace the references in the value of `key`. Store and return the new value.

    Args:
        key: A dotted key.
        leaves: The values of all dotted keys.
        resolved: Keys whose values have no references any more.
        pending: Keys whose values need the value of `key`.
    """
    value, written = leaves[key], leaves[key].data
    if key in resolved or "${" not in str(written):
        return written

    def target_of(match: re.Match[str]) -> Any:
        name = match[1]
        if len(pending) >= MAX_CHAIN:
            raise ConfigError(value.where, key, f"more than {MAX_CHAIN} keys form a chain of references")
        if name not in leaves and any(other.startswith(f"{name}.") for other in leaves):
            raise ConfigError(value.where, key, f"{written} refers to a section", "refer to one of its keys")
        if name not in leaves or name in (*pending, key):
            hint = "refer to a key that is written in the file or on the command line"
            raise ConfigError(value.where, key, f"{written} has no value", hint)
        if leaves[name].is_ambiguous:
            raise ambiguity_error(leaves[name], name)
        return _resolve(name, leaves, resolved, (*pending, key))

    def replace(data: Any) -> Any:
        if isinstance(data, list):
            return [replace(item) for item in data]
        if isinstance(data, dict):
            return {name: replace(item) for name, item in data.items()}
        if not isinstance(data, str) or "${" not in data:
            return data
        if "${" in _REFERENCE.sub("", data) or "\\${" in data:
            hint = "only references to keys, such as ${data.batch_size}, are allowed"
            raise ConfigError(value.where, key, f"{data} is refused", hint)
        whole = _REFERENCE.fullmatch(data)
        return target_of(whole) if whole else _REFERENCE.sub(lambda match: str(target_of(match)), data)

    value.data = replace(written)
    if len(text := str(value.data)) > MAX_BYTES:
        raise ConfigError(value.where, key, f"its references give more than {MAX_BYTES:,} characters")
    if "${" in text:  # parts can join to a new reference, which would be replaced when the run's config.yaml is read
        raise ConfigError(value.where, key, f"{written} results in another reference", "refer to the key itself")
    is_number = isinstance(value.data, int | float) and not isinstance(value.data, bool)
    value.text = str(value.data) if is_number else None
    resolved.add(key)
    return value.data


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yield the dotted key and the value of every leaf."""
    for name, node in section.items.items():
        if isinstance(node, Section):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", node
