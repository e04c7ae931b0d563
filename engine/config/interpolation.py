"""``${section.key}`` in a config: the value of another key that is written there, and nothing more.

OmegaConf's resolvers could read the environment, and the run folder would then keep a secret in plain text.
"""

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.config.yaml_reader import Section, Value, ambiguity_error
from engine.contracts import ConfigError

_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\}")


def resolve_interpolation(tree: Section) -> None:
    """Replace every reference in `tree` by what it refers to.

    Raises:
        ConfigError: if one is no plain reference, or leads nowhere, in a circle or to a section.
    """
    leaves = dict(_leaves(tree))
    found = [(key, value) for key, value in leaves.items() if "${" in str(value.data)]
    for key, value in found:
        if "${" in _REFERENCE.sub("", str(value.data)):
            hint = "only plain references such as ${data.batch_size} are read"
            raise ConfigError(value.where, key, f"{value.data} is refused", hint)
    whole = OmegaConf.create(_unmarked(tree)) if found else None
    for key, value in found:
        written = value.data
        for reference in _REFERENCE.finditer(str(written)):
            target = leaves.get(name := reference.group()[2:-1])
            if target is not None and target.ambiguous:
                raise ambiguity_error(target, name)
        try:
            value.data = OmegaConf.select(whole, key)  # type: ignore[arg-type]
        except (OmegaConfBaseException, RecursionError):
            hint = "refer to a key that is written in the file or on the command line"
            raise ConfigError(value.where, key, f"{written} leads to no value", hint) from None
        if OmegaConf.is_config(value.data):
            value.data = OmegaConf.to_container(value.data, resolve=True)
        if isinstance(value.data, dict):
            raise ConfigError(value.where, key, f"{written} refers to a section", "refer to one of its keys")
        number = isinstance(value.data, int | float) and not isinstance(value.data, bool)
        value.text = str(value.data) if number else None


def _leaves(section: Section, prefix: str = "") -> list[tuple[str, Value]]:
    leaves = []
    for name, node in section.items.items():
        leaves += _leaves(node, f"{prefix}{name}.") if isinstance(node, Section) else [(f"{prefix}{name}", node)]
    return leaves


def _unmarked(node: Section | Value) -> Any:
    return {name: _unmarked(child) for name, child in node.items.items()} if isinstance(node, Section) else node.data
