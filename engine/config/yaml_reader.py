"""Reads YAML into a tree that keeps the line of each value. Also writes YAML: reading it gives the same values.

PyYAML parses the text, and this module decides what an unquoted scalar means. YAML 1.1 has surprises: ``yes`` is true,
``010`` is 8, ``1:30`` is 90 and ``1e-3`` is text. Numbers are read as in JSON. A scalar that YAML 1.1 reads differently is
marked as ambiguous. It is refused later, except ``yes``, ``no``, ``on`` and ``off`` as the value of a boolean key.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.contracts import COMMAND_LINE, ConfigError

MAX_BYTES = 100_000  # a config has a few dozen lines; a larger file is a mistake or an attack
MAX_DEPTH = 20  # of nested sections and lists
MAX_KEY = 200  # characters of a dotted key

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YES_OR_NO = re.compile(r"yes|Yes|YES|on|On|ON|no|No|NO|off|Off|OFF")
_NUMBER_OF_YAML_1_1 = re.compile(
    r"[-+]?(0[0-9_]+|0[bxo][0-9a-fA-F_]+|[0-9][0-9]*_[0-9_]*(\.[0-9_]*)?|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?)"
)
_SAFE_TEXT = re.compile(r"[A-Za-z/_][\w./+-]*", re.ASCII)  # needs no quotes, unless it is a word such as true or null


@dataclass
class Value:
    """A scalar or a list.

    Attributes:
        data: The value.
        where: File and line, or "command line".
        text: A number as it was written, which becomes the value of a string key; None for other values.
        is_ambiguous: Whether YAML 1.1 and 1.2 read it differently.
    """

    data: Any
    where: str
    text: str | None = None
    is_ambiguous: bool = False

    def has_other_meaning(self, text: str) -> bool:
        """Whether YAML reads `text` without quotes as something else, namely as this value."""
        return self.is_ambiguous or self.data != text


@dataclass
class Section:
    """A mapping."""

    where: str
    items: dict[str, "Value | Section"] = field(default_factory=dict)


def read_yaml(path: Path) -> Section:
    """Return the tree of a YAML file whose root is a mapping.

    Raises:
        ConfigError: if the file is missing, too large, empty or not UTF-8, or is not exactly one YAML mapping.
    """
    source = str(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # a pipe can be read only once, but each process of a run reads the config
            raise ConfigError(source, "", "is not a regular file", "write the config to a file first")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(source, "", "file not found", _available(path)) from None
    except IsADirectoryError:
        raise ConfigError(source, "", "is a folder", "give a YAML file in it") from None
    except OSError as error:
        raise ConfigError(source, "", f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(source, "", f"has {len(content):,} bytes", f"a config has at most {MAX_BYTES:,}")
    try:
        tree = parse(content.decode("utf-8-sig"), source)
    except UnicodeDecodeError as error:
        raise ConfigError(source, "", f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    if isinstance(tree, Value) and tree.data is None:
        raise ConfigError(source, "", "is empty", "start from a copy of a file in configs/")
    if isinstance(tree, Value):
        raise ConfigError(tree.where, "", "is not a mapping", "a config has lines of the form `key: value`")
    return tree


def read_override(argument: str) -> tuple[str, Value | Section]:
    """Return the key and the value of an override ``a.b=c`` on the command line."""
    key, equals, text = argument.partition("=")
    if argument.startswith("-"):
        hint = f"write {key.lstrip('-')}={text or 'VALUE'}, without dashes; --help lists the options"
        raise ConfigError(COMMAND_LINE, key, "unknown option", hint)
    if not equals:
        raise ConfigError(COMMAND_LINE, argument, "is not an override", f"write {argument}=VALUE")
    if key.count(".") >= MAX_DEPTH or len(key) > MAX_KEY:
        raise ConfigError(COMMAND_LINE, f"{key[:40]}...", "is too long", "--help lists the keys")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise ConfigError(COMMAND_LINE, key, "is not a key", "keys are names joined by dots, as in optimizer.lr")
    if not text.strip():
        raise ConfigError(COMMAND_LINE, key, "has no value", f"write {key}=VALUE or {key}=null")
    return key, parse(text, COMMAND_LINE, key)


def parse(text: str, source: str, key: str = "") -> Value | Section:
    """Return the tree of a YAML document.

    Args:
        text: The document.
        source: The name of the file, or `COMMAND_LINE`.
        key: The key of an override, for errors.

    Raises:
        ConfigError: if the document is not valid YAML, or has a tag, an alias or a duplicate key.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark and source != COMMAND_LINE else source
        column = f" (column {mark.column + 1})" if mark else ""
        hint = "indent with spaces" if "\\t" in str(error.problem) else ""
        hint = "quote the whole argument for the shell, as in 'key=[1, 2]'" if source == COMMAND_LINE else hint
        raise ConfigError(where, key, f"is not valid YAML: {error.problem or error.context}{column}", hint) from None
    except yaml.YAMLError as error:
        raise ConfigError(source, key, f"is not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(source, key, "is nested too deeply") from None
    if node is None:
        return Value(None, source)
    tree = _convert(node, source, key, set())
    # PyYAML does not distinguish other written tags, such as !!omap or !!str, from the types that it infers
    tags = [token for token in yaml.scan(text, Loader=yaml.SafeLoader) if isinstance(token, yaml.TagToken)]
    if tags:
        where = source if source == COMMAND_LINE else f"{source}:{tags[0].start_mark.line + 1}"
        tag = "".join(filter(None, tags[0].value))
        raise ConfigError(where, key, f"has the YAML tag {tag}", "a config has plain values only")
    return tree


class _Dumper(yaml.SafeDumper):
    """Quotes every text that could be read as another value."""

    def represent_text(self, text: str) -> yaml.Node:
        is_safe = _SAFE_TEXT.fullmatch(text) and not _scalar(yaml.ScalarNode("", text), "").has_other_meaning(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_safe else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def write_yaml(values: Any) -> str:
    """Return YAML that `parse` and other YAML readers read as the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text


def _convert(
    node: yaml.Node, source: str, key: str, seen: set[int], where: str = "", depth: int = 0
) -> Value | Section:
    """Convert a node and its children.

    Args:
        node: A node of PyYAML.
        source: The name of the file, or `COMMAND_LINE`.
        key: Its dotted key, for errors.
        seen: Identities of the nodes that were converted before.
        where: The line of its key; "" for an item of a list, which has no key.
        depth: Number of sections and lists that contain the node.
    """
    where = where or _where(node, source)
    if id(node) in seen:  # aliases copy whole branches: six lines of YAML can make a million leaves
        hint = "write the value again, or refer to its key by ${section.key}"
        raise ConfigError(where, key, "uses a YAML alias", hint)
    seen.add(id(node))
    if node.tag.startswith(("!", "tag:yaml.org,2002:python")):
        raise ConfigError(where, key, f"has the YAML tag {node.tag}", "a config has plain values only")
    if depth > MAX_DEPTH:
        raise ConfigError(where, f"{key[:40]}...", "is nested too deeply", f"a config has at most {MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        section = Section(where)
        for key_node, value_node in node.value:
            line = _where(key_node, source)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(line, key, "has a key that is not a name")
            name = str(key_node.value)
            _check_characters(name, line, key)
            path = f"{key}.{name}" if key else name
            if name in section.items:
                first = section.items[name].where.rsplit(":", 1)[-1]
                raise ConfigError(line, path, "is written twice", f"first on line {first}")
            section.items[name] = _convert(value_node, source, path, seen, line, depth + 1)
        return section
    if isinstance(node, yaml.SequenceNode):
        items = [_convert(item, source, f"{key}[{i}]", seen, "", depth + 1) for i, item in enumerate(node.value)]
        return Value([plain(item, f"{key}[{i}]") for i, item in enumerate(items)], where)
    assert isinstance(node, yaml.ScalarNode)
    _check_characters(str(node.value), where, key)
    return _scalar(node, where)


def _check_characters(text: str, where: str, key: str) -> None:
    """Refuse characters that no file name can have, or that cannot be written as UTF-8."""
    try:
        if "\0" not in text:
            text.encode()
            return
    except UnicodeEncodeError:
        pass
    raise ConfigError(where, key, "has a character that UTF-8 text cannot have", "write it without this character")


def _where(node: yaml.Node, source: str) -> str:
    return source if source == COMMAND_LINE else f"{source}:{node.start_mark.line + 1}"


def plain(node: Value | Section, key: str) -> Any:
    """Return the data of a tree: a dict, list or scalar. An ambiguous scalar is refused."""
    if isinstance(node, Section):
        return {name: plain(child, f"{key}.{name}") for name, child in node.items.items()}
    if node.is_ambiguous:
        raise ambiguity_error(node, key)
    return node.data


def ambiguity_error(value: Value, key: str) -> ConfigError:
    """Return the error for a scalar that different versions of YAML read differently."""
    text = value.text
    if isinstance(value.data, bool):
        hint = f"write {str(value.data).lower()}, or '{text}' in quotes for the word"
        return ConfigError(value.where, key, f"{text} can be a boolean or a word", hint)
    hint = f"write a decimal number, or '{text}' in quotes for text"
    return ConfigError(value.where, key, f"{text} is read differently by different versions of YAML", hint)


def _scalar(node: yaml.ScalarNode, where: str) -> Value:
    text = node.value
    if node.style is not None:  # a quoted scalar or a block is always text
        return Value(text, where)
    if text in ("", "~", "null", "Null", "NULL"):
        return Value(None, where)
    if text in _BOOLEANS:
        return Value(_BOOLEANS[text], where)
    if _INTEGER.fullmatch(text):
        return Value(int(text) if len(text) < 30 else float(text), where, text)
    if _FLOAT.fullmatch(text):
        return Value(float(text), where, text)
    if _NOT_FINITE.fullmatch(text):
        return Value(float(text.replace(".", "")), where, text)
    if _YES_OR_NO.fullmatch(text):
        return Value(text.lower() in ("yes", "on"), where, text, is_ambiguous=True)
    if _NUMBER_OF_YAML_1_1.fullmatch(text):
        return Value(text, where, text, is_ambiguous=True)
    return Value(text, where)


def _available(path: Path) -> str:
    """Return a hint with a config of a similar name, or with the configs in the same folder."""
    for folder in (path.parent, Path("configs")):
        names = sorted(found.name for found in folder.glob("[!.]*.yaml"))
        if close := difflib.get_close_matches(path.stem, [Path(name).stem for name in names], 1):
            return f"did you mean {folder / close[0]}.yaml?"
        if names:
            return f"files in {folder}: {', '.join(names)}"
    return ""
