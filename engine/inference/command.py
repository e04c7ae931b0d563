"""Runs a command that uses a trained model: every end is one line and an exit code, except a bug, which has a traceback."""

import gc
import os
import signal
import sys
from collections.abc import Callable

from engine.contracts import UserError
from engine.memory import keep_freed_memory
from engine.terminal import prepare_output
from engine.training.exits import FAILED, INTERRUPTED, REFUSED, RunEnded, explain_error, report_bug


def run_command(main: Callable[[list[str]], int]) -> int:
    """Call `main` with the command line, and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_freed_memory()
    gc.set_threshold(50_000, 20, 20)  # imports create a million objects; Python's default takes 10 % of their time
    prepare_output()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:  # the output is a closed pipe, or its disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                return 0
            print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
            return FAILED
        explained = explain_error(error, None, 1)
        if isinstance(explained, RunEnded):
            print(explained, file=sys.stderr)
            return explained.exit_code
        return report_bug(error)
