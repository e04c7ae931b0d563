"""Parts of error messages about a config: suggestions, and values as they were written."""

import difflib
from collections.abc import Iterable
from typing import Any


def suggest(word: str, choices: Iterable[str], title: str) -> str:
    """Return ``did you mean X?``, or all choices under `title` if none is close."""
    close = closest(word, choices)
    return f"did you mean {close}?" if close else f"{title}: {', '.join(sorted(set(choices)))}"


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice with a similar spelling, or with a part added before or after `word`; None if no choice is close."""
    choices = sorted(set(choices))
    ends = (f".{word}", f"_{word}") if len(word) > 2 else (f".{word}",)
    longer = (name for name in choices if name.endswith(ends) or (len(word) > 2 and name.startswith(f"{word}_")))
    return next(longer, None) or next(iter(difflib.get_close_matches(word, choices, 1, 0.6)), None)


def as_written(value: Any) -> str:
    """Return a value as YAML writes it, with text in quotes."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
