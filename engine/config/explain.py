"""What a person asks of a config before running it: ``--help`` and ``--explain KEY``."""

import shutil
import textwrap
from typing import Any

from engine.config.components import NAMED, SECTIONS, component_names
from engine.config.config import Config
from engine.config.errors import suggest
from engine.config.signatures import COMPUTED, PROJECT, REQUIRED, Parameter
from engine.config.yaml_reader import COMMAND_LINE
from engine.contracts import ConfigError


def explain(config: Config, key: str) -> str:
    """Where the value of `key` comes from, what it means and what it accepts.

    Raises:
        ConfigError: if the config has no such key.
    """
    if key not in config.all_keys():
        hint = suggest(key, config.all_keys(), "keys")
        raise ConfigError(COMMAND_LINE, "--explain", f"no key {key!r} in {config.path}", hint)
    if key not in config.parameters:  # it chooses a component
        section = key.removesuffix(".name")
        rows = [("value", config[key]), ("from", config.origins[key]), ("means", config.components[section].summary)]
        return _rows(key, [*rows, ("accepts", ", ".join(component_names(section)))])
    parameter, value = config.parameters[key], config[key]
    if parameter.default in (REQUIRED, COMPUTED):
        default = "none, it must be written" if parameter.default is REQUIRED else "the constructor decides"
    else:
        default = _yaml(parameter.default)
    return _rows(
        key,
        [
            ("value", _yaml(value)),
            ("from", config.origins.get(key, f"default ({parameter.where})")),
            ("means", parameter.meaning),
            ("accepts", parameter.accepts),
            ("default", default),
        ],
    )


def help_text(config: Config | None) -> str:
    """The lines below the usage: what can be named and, with a config, every key with its value and meaning."""
    if config is None:
        experiments = sorted(path.name for path in (PROJECT / "configs").glob("*.yaml"))
        rows = [("configs/", ", ".join(experiments))] + [
            (f"{section}.name", ", ".join(component_names(section))) for section in NAMED
        ]
        rows += [("callbacks", ", ".join(component_names("callbacks")))]
        return _rows("what a config can name (add --config FILE to this for every key of it):", rows)
    blocks = []
    for section in ("", *SECTIONS):
        keys = {
            k: one
            for k, one in config.parameters.items()
            if k.startswith(f"{section}.") or (not section and "." not in k)
        }
        lines = [_line(config, key, one) for key, one in keys.items()]
        if section in NAMED:
            lines.insert(
                0,
                _wrapped(f"  {section}.name={config[section]['name']}  ", f"({' | '.join(component_names(section))})"),
            )
        if section == "callbacks":
            lines.append(
                _wrapped("  more callbacks: ", ", ".join(sorted({*component_names(section)} - {*config["callbacks"]})))
            )
        if lines:
            blocks.append("\n".join(lines))
    return f"keys of {config.path}, with their values:\n\n" + "\n\n".join(blocks)


def _line(config: Config, key: str, parameter: Parameter) -> str:
    head = f"  {key}={_yaml(config[key])}  ({parameter.accepts})"
    text = parameter.meaning.split(". ")[0].rstrip(".")
    return _wrapped(head, "") + "\n" + _wrapped("      ", text)


def _rows(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join([title, *(_wrapped(f"  {name:<{width}}", text) for name, text in rows if text)])


def _wrapped(head: str, text: str) -> str:
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    indent = " " * (len(head) if len(head) < 24 else 6)
    return textwrap.fill(
        head + text if head.strip() else indent + text, width, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)
