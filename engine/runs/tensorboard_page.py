"""Starts TensorBoard with all runs selected.

TensorBoard's page selects no run if it finds more than 40 (SCALARS, IMAGES and most other tabs) or 500 (TIME SERIES), and it
counts training, validation and test of a run separately. No option and no address changes these limits. This module
therefore serves the page with higher limits in its script. `tensorboard.program.TensorBoard` takes the files of the page as
an argument.
"""

import io
import re
import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.contracts import COMMAND_LINE, ConfigError
from engine.runs.run_index import Run

LIMITS = (rb"(maxNamesToEnableByDefault=)\d+\b", rb"(runsForAllExperiments\.length<=)\d+\b")
SCRIPT_ADDRESS = b"index.js?"  # in index.html; browsers cache the script at an address for a day


def start_tensorboard(root: Path, runs: Sequence[Run], options: Sequence[str]) -> int:
    """Start TensorBoard and wait until Ctrl-C. Returns the exit code.

    Args:
        root: Folder of all runs.
        runs: The runs to show. If there are none, the page shows all runs, and also runs that start later.
        options: Further options of the command ``tensorboard``.
    """
    from tensorboard import default, program
    from tensorboard.plugins.base_plugin import FlagsError

    with ExitStack() as stack:
        if runs:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="tensorboard-")))
            for run in runs:
                (root / run.name).parent.mkdir(exist_ok=True)
                (root / run.name).symlink_to(run.folder.resolve())
        page = changed_page()
        board = program.TensorBoard(default.get_plugins(), assets_zip_provider=lambda: io.BytesIO(page))
        try:
            board.configure(("tensorboard", f"--logdir={root}", *options))
        except FlagsError as error:
            raise ConfigError(COMMAND_LINE, "tensorboard", str(error)) from None
        return 2 if board.main() else 0


def changed_page() -> bytes:
    """Return TensorBoard's page as a zip file, with limits that are high enough for any number of runs."""
    from tensorboard.assets import get_default_assets_zip_provider

    changed, count = io.BytesIO(), 0
    with zipfile.ZipFile(get_default_assets_zip_provider()()) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "index.html":
                content = content.replace(SCRIPT_ADDRESS, SCRIPT_ADDRESS + b"all_runs&")
            elif name == "index.js":
                for limit in LIMITS:
                    content, found = re.subn(limit, rb"\g<1>1e6", content)
                    count += found
            new.writestr(name, content)
    if count != len(LIMITS):
        print("this version of TensorBoard selects no runs if there are many; select them on its page", file=sys.stderr)
    return changed.getvalue()
