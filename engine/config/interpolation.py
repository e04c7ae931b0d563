"""Resolves ``${section.key}`` in a config: the value of another key that is written in it.

OmegaConf's own resolvers are refused, because they can read environment variables, and the run folder would keep a secret in
plain text.
"""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config.yaml_reader import Section, Value, ambiguity_error
from engine.contracts import ConfigError

_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\}")


def resolve_interpolation(tree: Section) -> None:
    """Replace every reference in `tree` by the value of the key that it names.

    Raises:
        ConfigError: if a reference is not of the form ``${section.key}``, is circular, or names a section or no key at all.
    """
    leaves = dict(_leaves(tree))
    references = [(key, value) for key, value in leaves.items() if "${" in str(value.data)]
    for key, value in references:
        if "${" in _REFERENCE.sub("", str(value.data)):
            hint = "only references to keys, such as ${data.batch_size}, are allowed"
            raise ConfigError(value.where, key, f"{value.data} is refused", hint)
    config = OmegaConf.create(_plain_data(tree)) if references else None
    for key, value in references:
        written = value.data
        for reference in _REFERENCE.finditer(str(written)):
            target = leaves.get(name := reference.group()[2:-1])
            if target is not None and target.is_ambiguous:
                raise ambiguity_error(target, name)
        try:
            value.data = OmegaConf.select(config, key)  # type: ignore[arg-type]
        except (OmegaConfBaseException, RecursionError):
            hint = "refer to a key that is written in the file or on the command line"
            raise ConfigError(value.where, key, f"{written} has no value", hint) from None
        if OmegaConf.is_config(value.data):
            value.data = OmegaConf.to_container(value.data, resolve=True)
        if isinstance(value.data, dict):
            raise ConfigError(value.where, key, f"{written} refers to a section", "refer to one of its keys")
        is_number = isinstance(value.data, int | float) and not isinstance(value.data, bool)
        value.text = str(value.data) if is_number else None


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yield the dotted key and the value of every leaf."""
    for name, node in section.items.items():
        if isinstance(node, Section):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", node


def _plain_data(node: Section | Value) -> Any:
    return {name: _plain_data(child) for name, child in node.items.items()} if isinstance(node, Section) else node.data
