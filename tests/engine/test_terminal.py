"""Text of a user's files cannot control the terminal."""

import io
import pickle

import pytest

from engine.contracts import BrokenCheckpointError, ConfigError, DataError, OptionError, UserError, one_line
from engine.terminal import print_line

# colours, cursor, title of the window, clipboard, reset, 8-bit sequences, right-to-left, erased letters, invisible letters
SEQUENCES = [
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x07", "\x1bc", "\x9b31m", "\x9d0;title\x9c",
    "\u202etxt", "right\b\b\b\b\bwrong", "a\u200bb", "a\rb", "a\x00b", "\ud800", "\u2028", "a\tb", "\x7f",
]  # fmt: skip


@pytest.mark.parametrize("text", SEQUENCES)
@pytest.mark.parametrize("kind", [UserError, DataError, OptionError, BrokenCheckpointError])
def test_errors_show_escape_sequences(text, kind):
    message = str(kind(f"header {text} is unknown"))
    assert message.isprintable()
    assert str(kind(message)) == message
    assert str(ConfigError("file.yaml:1", text, text, text)).isprintable()
    assert one_line(ValueError(f"header {text}")).isprintable()


@pytest.mark.parametrize("text", SEQUENCES)
def test_printed_lines_show_escape_sequences(text, monkeypatch):
    stream = io.StringIO(newline="")
    monkeypatch.setattr("sys.stdout", stream)
    print_line(f"class {text}\nof data")
    print_line(f"\rclass {text}", end="")
    first, second, third = stream.getvalue().split("\n")
    assert first.isprintable()
    assert second == "of data"
    assert third.startswith("\rclass ")
    assert third[1:].isprintable()


@pytest.mark.parametrize("text", ["naïve", "日本語", "🙂", "a\\nb", "C:\\x1b", "e\u0301"])
def test_other_characters_do_not_change(text, capsys):
    assert str(DataError(text)) == text
    print_line(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_errors_can_be_raised_without_a_message_and_copied():
    error = pickle.loads(pickle.dumps(DataError("a\x1bb")))
    assert str(error) == "a\\x1bb"
    assert str(UserError()) == ""
    assert str(DataError(ValueError("a\x1bb"))) == "a\\x1bb"
