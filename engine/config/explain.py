"""The texts of ``--help`` and ``--explain KEY``."""

import shutil
import textwrap
from typing import Any

from engine.config.components import NAMED, SECTIONS, component_names
from engine.config.config import Config
from engine.config.errors import suggest
from engine.config.signatures import COMPUTED, PROJECT, REQUIRED
from engine.contracts import COMMAND_LINE, ConfigError

MIN_WIDTH = 60  # columns; a narrower terminal wraps the lines itself
MAX_INDENT = 24  # the largest indent of the further lines of an entry; after a longer name it is INDENT
INDENT = 6


def explain(config: Config, key: str) -> str:
    """Return where the value of `key` comes from, what it means and what it accepts."""
    if key not in config.all_keys():
        hint = suggest(key, config.all_keys(), "keys")
        raise ConfigError(COMMAND_LINE, "--explain", f"{config.path} has no key {key!r}", hint)
    if key not in config.parameters:  # SECTION.name
        section = key.removesuffix(".name")
        return _entries(
            key,
            {
                "value": config[key],
                "from": config.origins[key],
                "means": config.components[section].summary,
                "accepts": ", ".join(component_names(section)),
            },
        )
    parameter = config.parameters[key]
    if parameter.default is REQUIRED:
        default = "none, the key is required"
    else:
        default = "computed by the constructor" if parameter.default is COMPUTED else _yaml(parameter.default)
    return _entries(
        key,
        {
            "value": _yaml(config[key]),
            "from": config.origins.get(key, f"default ({parameter.where})"),
            "means": parameter.meaning,
            "accepts": parameter.accepts,
            "default": default,
        },
    )


def help_text(config: Config | None) -> str:
    """Return the names that a config can use or, for a given config, every key with its value and meaning."""
    if config is None:
        names = {"configs/": ", ".join(sorted(path.name for path in (PROJECT / "configs").glob("*.yaml")))}
        names |= {f"{section}.name": ", ".join(component_names(section)) for section in NAMED}
        names["callbacks"] = ", ".join(component_names("callbacks"))
        return _entries("names (--config FILE --help lists every key of a config):", names)
    blocks = []
    for section in ("", *SECTIONS):
        keys = [key for key in config.parameters if (key.partition(".")[0] if "." in key else "") == section]
        lines = [_describe(config, key) for key in keys]
        if section in NAMED:
            name = f"  {section}.name={config[section]['name']}  "
            lines.insert(0, _wrap(name, f"({' | '.join(component_names(section))})"))
        if section == "callbacks":
            others = sorted({*component_names(section)} - {*config["callbacks"]})
            lines.append(_wrap("  more callbacks: ", ", ".join(others)))
        blocks.append("\n".join(lines))
    return f"keys of {config.path} and their values:\n\n" + "\n\n".join(blocks)


def _describe(config: Config, key: str) -> str:
    """Return the value, the accepted values and the meaning of a key."""
    parameter = config.parameters[key]
    first_sentence = parameter.meaning.split(". ")[0].rstrip(".")
    head = _wrap(f"  {key}={_yaml(config[key])}  ({parameter.accepts})", "")
    return f"{head}\n{_wrap(' ' * INDENT, first_sentence)}"


def _entries(title: str, texts: dict[str, str]) -> str:
    width = max(map(len, texts)) + 2
    return "\n".join([title, *(_wrap(f"  {name:<{width}}", text) for name, text in texts.items() if text)])


def _wrap(head: str, text: str) -> str:
    """Wrap `text` at the width of the terminal, with `head` before its first line."""
    width = max(MIN_WIDTH, shutil.get_terminal_size((100, 24)).columns)
    indent = " " * (len(head) if len(head) < MAX_INDENT else INDENT)
    return textwrap.fill(head + text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)
