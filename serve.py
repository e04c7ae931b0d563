"""Serve the model of a run: a web page and a JSON API.

python serve.py RUN                         the page is at http://127.0.0.1:8000
python serve.py RUN --port 8001             another port, for a second model
python serve.py RUN --host 192.168.0.7      listen on this address, so that other machines can connect
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all modules are imported: Ctrl-C shows no traceback

import argparse
import errno
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from engine.contracts import COMMAND_LINE, ConfigError
from engine.inference.command import run_command
from engine.inference.trained_run import find_trained_run
from engine.terminal import CommandLineParser, home_path, quiet_lightning

PACKAGES = ("starlette", "uvicorn", "httptools")


def main(argv: list[str]) -> int:
    """Run the command line `argv`. It ends with a signal, such as that of Ctrl-C."""
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    run = find_trained_run(arguments.run, arguments.root)
    with listen(arguments.host, arguments.port) as listener:
        quiet_lightning()
        from engine.inference.predictor import Predictor
        from engine.inference.server import ModelServer

        ModelServer(Predictor(run, arguments.device), arguments.max_batch).run(listener, arguments.host)
    return 0


def make_parser() -> CommandLineParser:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = CommandLineParser(
        prog="python serve.py", description=description, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="folder of a run, its best.ckpt, or CONFIG/NAME")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on, or 0 for any free port (default: 8000)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="ROWS", help="maximum rows in a batch (default: 64)"
    )
    parser.add_argument("--root", type=home_path, default=Path("runs"), metavar="FOLDER", help="folder of all runs")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a `ConfigError` for an invalid argument, before the run is read."""
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(COMMAND_LINE, "--port", f"{arguments.port} is not a number from 0 to 65535")
    if arguments.max_batch < 1:
        raise ConfigError(COMMAND_LINE, "--max-batch", f"{arguments.max_batch} is below 1")
    for package in PACKAGES:
        if find_spec(package) is None:
            hint = "run: pip install -e '.[serve]' -c constraints.txt"
            raise ConfigError(COMMAND_LINE, "", f"serve.py needs the package {package}", hint)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port, before the model is loaded, so that a used port is found early."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # not `socket.create_server`, whose protocol is 0: asyncio then leaves out TCP_NODELAY, and each answer takes 40 ms
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or error
        hint = "choose another --port" if getattr(error, "errno", None) == errno.EADDRINUSE else ""
        raise ConfigError(COMMAND_LINE, "", f"cannot listen on {host}, port {port} ({reason})", hint) from None


if __name__ == "__main__":
    sys.exit(run_command(main))
