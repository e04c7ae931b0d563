"""TensorBoard in a real browser: Chromium without a window, told what to do over a pipe.

The protocol is that of Chrome's developer tools (https://chromedevtools.github.io/devtools-protocol/), one message of JSON
after another, each ended by a zero byte; so no driver and no package is needed.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-unsafe-swiftshader", "about:blank",
)  # fmt: skip
PATIENCE_SECONDS = 90.0
# All that a page shows: texts, and pictures that have been loaded, also inside of components and frames.
SEEN = """(() => {
  const found = [];
  const look = node => {
    if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) found.push(node.textContent.trim());
    if (node.tagName === 'IMG' && node.naturalWidth) found.push(`picture ${node.src}`);
    if (node.tagName === 'INPUT') found.push(node.value);
    if (['STYLE', 'SCRIPT'].includes(node.tagName)) return;
    if (node.tagName === 'IFRAME' && node.contentDocument) look(node.contentDocument.body);
    if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
    node.childNodes.forEach(look);
  };
  if (document.body) look(document.body);
  return found.join('\\n');
})()"""


class Browser:
    """One page.

    Args:
        read: Descriptor of the pipe that Chromium answers by.
        write: Descriptor of the pipe that it listens to.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._count = read, write, b"", 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Go to `url`, in a window of this size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Page.navigate", url="about:blank")  # another #tab alone would be no new page
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """What JavaScript comes to, as far as JSON knows it."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, *wanted: str) -> str:
        """All that the page shows, once `wanted` are part of it.

        Raises:
            AssertionError: if they are not after a minute and a half; it says which, and what the page shows.
        """
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = self.evaluate(SEEN) or ""
            missing = [one for one in wanted if one not in seen]
            if not missing:
                return seen
            assert time.monotonic() < ends, f"not there: {missing}; the page shows:\n{seen[:4000]}"
            time.sleep(0.25)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 2**16)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, gone at the end."""
    assert CHROMIUM is not None
    ours, theirs = os.pipe(), os.pipe()  # what it reads, what it writes

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, f"--user-data-dir={profile}", *OPTIONS]
        process = subprocess.Popen(
            command,
            preexec_fn=_placed(ours[0], theirs[1]),
            close_fds=False,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": profile},
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            yield Browser(theirs[0], ours[1])
        finally:
            process.kill()
            process.wait()
            os.close(ours[1])
            os.close(theirs[0])


def _placed(read: int, write: int) -> Callable[[], None]:
    """Chromium reads from descriptor 3 and writes to 4."""

    def place() -> None:
        spare = os.dup(read), os.dup(write)
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    return place


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """The address of a TensorBoard over `logdir`, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--logdir", logdir.name, "--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", *options]
    # From the folder above, because its page shows the path as it is given.
    process = subprocess.Popen(command, cwd=logdir.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "TensorBoard has ended"
                assert time.monotonic() < ends, "TensorBoard does not answer"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
