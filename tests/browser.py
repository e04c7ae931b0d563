"""Pages in a real browser: headless Chromium, controlled through pipes.

The protocol is that of Chrome's developer tools (https://chromedevtools.github.io/devtools-protocol/). Each message is JSON
followed by a zero byte, so neither a driver nor a package is needed.
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

from engine.config.signatures import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-unsafe-swiftshader", "about:blank",
)  # fmt: skip
TIMEOUT_SECONDS = 90.0
# JavaScript: all texts of a page and the addresses of loaded pictures, also inside of components and frames
VISIBLE_TEXT = """(() => {
  const found = [];
  const look = node => {
    if (!node) return; // the body of a frame that is still loading
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
    """One page of a browser.

    Args:
        read: Descriptor of the pipe that Chromium writes to.
        write: Descriptor of the pipe that Chromium reads from.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._count = read, write, b"", 0
        self._session: str | None = None
        target = self._request("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._request("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Open `url` in a window of this size in pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._request("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._request("Emulation.setDeviceMetricsOverride", **metrics)
        self._request("Page.navigate", url="about:blank")  # a new #tab of the same address would not load the page
        self._request("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The result of a JavaScript expression, if JSON can represent it."""
        answer = self._request("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, *texts: str) -> str:
        """Wait until the page shows all `texts`, as often as they are given, and return everything that it shows.

        Raises:
            AssertionError: if a text is still missing after `TIMEOUT_SECONDS`.
        """
        end = time.monotonic() + TIMEOUT_SECONDS
        while True:
            visible = self.evaluate(VISIBLE_TEXT) or ""
            missing = [text for text in {*texts} if visible.count(text) < texts.count(text)]
            if not missing:
                return visible
            assert time.monotonic() < end, f"missing: {missing}; the page shows:\n{visible[:4000]}"
            time.sleep(0.25)

    def choose_file(self, path: Path) -> None:
        """Choose a file in the only file input of the page."""
        root = self._request("DOM.getDocument")["root"]["nodeId"]
        node = self._request("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self._request("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop_file(self, path: Path, x: float, y: float) -> None:
        """Drag a file to a place in the window, and drop it there."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._request("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self) -> bytes:
        """The window as a PNG file."""
        return base64.b64decode(self._request("Page.captureScreenshot", format="png")["data"])

    def _request(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read_message()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read_message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 2**16)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(*options: str) -> Iterator[Browser]:
    """A Chromium with a temporary profile, and with more command-line options."""
    assert CHROMIUM is not None
    ours, theirs = os.pipe(), os.pipe()  # what we write, what Chromium writes: (read, write)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, f"--user-data-dir={profile}", *options, *OPTIONS]
        process = subprocess.Popen(
            command,
            preexec_fn=_place_descriptors(ours[0], theirs[1]),
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


def _place_descriptors(read: int, write: int) -> Callable[[], None]:
    """Chromium reads from descriptor 3 and writes to descriptor 4."""

    def place() -> None:
        spare = os.dup(read), os.dup(write)
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    return place


@contextmanager
def tensorboard(logdir: Path, selects_all: bool = False) -> Iterator[str]:
    """The address of a TensorBoard that reads `logdir`, on a free port of this machine.

    Args:
        logdir: Folder of all runs.
        selects_all: Start it with ``python runs.py tensorboard``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir.name, *options]
    if selects_all:
        command = [sys.executable, str(PROJECT / "runs.py"), "--root", logdir.name, "tensorboard", *options]
    # started in the folder above, because the page shows the path as it is given
    process = subprocess.Popen(command, cwd=logdir.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "TensorBoard has ended"
                assert time.monotonic() < end, "TensorBoard does not answer"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
