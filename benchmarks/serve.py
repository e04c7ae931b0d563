"""Requests to serve.py from 8 clients that are predicted in batches, compared with one client without batching."""

import io
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.measure import BenchmarkError, Comparison, run_in_turn, run_python
from datamodules.mnist import MNIST
from engine.config.signatures import PROJECT

REQUESTS, CLIENTS, WARM_UP = 2000, 8, 200
TRAINING = ["--config", "configs/mnist_cnn.yaml", "trainer.max_epochs=1", "trainer.limit_train_batches=20"]

Address = tuple[str, int]


def run(options: Namespace) -> list[Comparison]:
    _, (images, _) = MNIST(root=options.data).load()
    pictures = [as_request("predict", image[0].numpy()) for image in images[:REQUESTS]]
    seconds: dict[int, list[float]] = {1: [], CLIENTS: []}

    def time_requests(address: Address, clients: int) -> float:
        send(address, pictures[:WARM_UP], clients)
        start = time.perf_counter()
        seconds[clients] += send(address, pictures, clients)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        run_python("train.py", *TRAINING, f"data.root={options.data}", f"run.root={folder}")
        (trained,) = Path(folder).glob("*/*")
        explain = as_request("explain", images[0][0].numpy())
        with serve(trained, explain) as batching, serve(trained, explain, "--max-batch", "1") as single:
            ours, theirs = lambda: time_requests(batching, CLIENTS), lambda: time_requests(single, 1)
            times = run_in_turn({f"{CLIENTS} clients": ours, "1 client": theirs}, options.pairs)
    ours_seconds, their_seconds = times.values()
    slowest = [f"{1e3 * statistics.quantiles(seconds[clients], n=100)[98]:.1f} ms" for clients in (CLIENTS, 1)]
    speed = len(pictures) / statistics.median(ours_seconds)
    note = f"{speed:,.0f} requests/s; 99th percentile {' / '.join(slowest)}"
    work = f"{len(pictures):,} pictures, {CLIENTS} clients"
    return [Comparison(work, "1 client, --max-batch 1", ours_seconds, their_seconds, at_least=4, note=note)]


@contextmanager
def serve(folder: Path, explain: bytes, *options: str) -> Iterator[Address]:
    """Yield the address of a server that has read the training samples, as the answer to `explain` shows."""
    command = [sys.executable, str(PROJECT / "serve.py"), str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
            if found is None:
                raise BenchmarkError(f"serve.py ended with exit code {process.wait()}")
            address = found[1], int(found[2])
            with socket.create_connection(address) as connection:
                connection.sendall(explain)
                while b'"similar":null' in read_answer(connection):
                    time.sleep(0.5)
                    connection.sendall(explain)
            yield address
        finally:
            process.terminate()


def as_request(path: str, image: Any) -> bytes:
    """Return the request with an image (H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    body = file.getvalue()
    head = f"POST /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def send(address: Address, requests: Sequence[bytes], clients: int) -> list[float]:
    """Send all requests from clients that each wait for their answer. Returns the seconds of each request.

    The clients are connections of one thread, because threads would take time from the server.
    """
    seconds, sent, waiting = [], {}, iter(requests)
    with selectors.DefaultSelector() as selector:

        def send_next(connection: socket.socket) -> None:
            if (request := next(waiting, None)) is not None:
                sent[connection] = time.perf_counter()
                connection.sendall(request)
            else:
                selector.unregister(connection)
                connection.close()

        for connection in [socket.create_connection(address) for _ in range(clients)]:
            selector.register(connection, selectors.EVENT_READ)
            send_next(connection)
        while selector.get_map():
            for key, _ in selector.select():
                ready: Any = key.fileobj
                read_answer(ready)
                seconds.append(time.perf_counter() - sent[ready])
                send_next(ready)
    return seconds


def read_answer(connection: socket.socket) -> bytes:
    """Return the body of an answer.

    Raises:
        BenchmarkError: if it is not a success.
    """
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += connection.recv(1 << 16)
    if not head.startswith(b"HTTP/1.1 200"):
        raise BenchmarkError(f"the server answers {body.decode()}")
    return body
