"""An HTTP server for the model of a run, with a web page and a JSON API.

While the model computes, new requests wait. Then they are predicted as one batch. The model runs in its own thread, so that
the event loop is never blocked.
"""

import asyncio
import json
import signal
import socket
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from engine.contracts import InputPart, UserError
from engine.inference.data_urls import overlay_url
from engine.inference.explanations import explain_row
from engine.inference.predictor import Predictions, Predictor
from engine.inference.request_inputs import RequestInputs
from engine.inference.similar import SimilarSamples
from engine.terminal import print_line
from engine.threads import ARE_THREADS_SET, available_cores
from engine.training.exits import report_bug

PAGE = Path(__file__).with_name("page.html")
MAX_BYTES = 10_000_000  # of a request
MAX_PIXELS = 50_000_000  # of a picture
GRACE_SECONDS = 1  # that the server waits for running requests when it ends
# The browser must not load anything from other hosts.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
)


class WaitingRequest(NamedTuple):
    """Inputs that wait for their prediction."""

    inputs: list[Any]
    answer: asyncio.Future[Predictions]


class BatchingPredictor:
    """Predicts the inputs of concurrent requests as one batch.

    While the model computes a batch, new requests wait for the next batch. No request waits for a batch to fill.

    Args:
        predictor: The model.
        max_batch: Maximum number of rows in a batch.
    """

    def __init__(self, predictor: Predictor, max_batch: int) -> None:
        self.predictor, self.max_batch = predictor, max_batch
        predictor.batch_size = min(predictor.batch_size, max_batch)
        self._waiting: deque[WaitingRequest] = deque()
        self._thread = ThreadPoolExecutor(1, "model")

    async def predict(self, inputs: list[Any]) -> Predictions:
        """Predict the inputs of a request. Errors are those of `Predictor.predict`."""
        loop = asyncio.get_running_loop()
        request = WaitingRequest(inputs, loop.create_future())
        self._waiting.append(request)
        self._thread.submit(self._predict_batch, loop)  # finds nothing to do if an earlier batch includes the request
        return await request.answer

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Call a function in the thread of the model."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _predict_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        if batch := self._take_batch():
            loop.call_soon_threadsafe(_deliver, batch, self._outcomes(batch))

    def _take_batch(self) -> list[WaitingRequest]:
        """Remove waiting requests with at most `max_batch` rows, or the first request if it has more, and return them."""
        batch: list[WaitingRequest] = []
        num_rows = 0
        while self._waiting and (not batch or num_rows + len(self._waiting[0].inputs) <= self.max_batch):
            batch.append(self._waiting.popleft())
            num_rows += len(batch[-1].inputs)
        return batch

    def _outcomes(self, batch: list[WaitingRequest]) -> list[Predictions | Exception]:
        """Return the predictions or the error of each request. An error of one request does not affect the others."""
        try:
            found = self.predictor.predict([value for request in batch for value in request.inputs], skip_broken=True)
        except Exception as error:
            return [error] if len(batch) == 1 else [self._outcomes([request])[0] for request in batch]
        outcomes: list[Predictions | Exception] = []
        start = 0
        for request in batch:
            outcomes.append(found[start : start + len(request.inputs)])
            start += len(request.inputs)
        return outcomes


def _deliver(batch: list[WaitingRequest], outcomes: list[Predictions | Exception]) -> None:
    for request, outcome in zip(batch, outcomes, strict=True):
        if request.answer.done():  # cancelled, because the server ends
            continue
        if isinstance(outcome, Exception):
            request.answer.set_exception(outcome)
        else:
            request.answer.set_result(outcome)


class ModelServer:
    """Answers requests with the predictions of a model.

    Args:
        predictor: The model.
        max_batch: Maximum number of rows in a batch.
    """

    def __init__(self, predictor: Predictor, max_batch: int) -> None:
        self.predictor, self.inputs = predictor, RequestInputs(predictor)
        self.batching = BatchingPredictor(predictor, max_batch)
        self.similar = SimilarSamples(predictor.run, predictor.device)
        self.name = "/".join(predictor.run.folder.resolve().parts[-2:])

    def run(self, listener: socket.socket, host: str) -> None:
        """Serve until SIGINT or SIGTERM ends this process.

        Args:
            listener: The socket. Requests wait there until the model is ready.
            host: Name or address of the server. Requests to other names are refused. This prevents DNS rebinding: the
                website of an attacker cannot use a domain that resolves to this machine.
        """
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this number, and refuses twice this number
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        if not ARE_THREADS_SET:
            torch.set_num_threads(max(1, available_cores() - 1))  # the event loop needs a core, too
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app(["127.0.0.1", "localhost", host]), http="httptools", ws="none", lifespan="off", access_log=False,
            log_config=None, log_level="critical", server_header=False, timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip
        # After it has closed the connections, uvicorn raises the signal again. The default handler then ends the process
        # with the exit code that a shell expects. Python's own exit would crash if a thread is still computing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        server = _Server(config)
        server.on_start = lambda: self._start(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        server.run([listener])

    def _start(self, url: str) -> None:
        print_line(f"{self.name} is served at {url} (Ctrl-C ends the server)")
        self.similar.start()

    def app(self, hosts: list[str]) -> Starlette:
        """Return the application, which answers requests to `hosts`."""
        routes = [
            Route("/", self.show_page, methods=["GET"]),
            Route("/health", self.check_health, methods=["GET"]),
            Route("/description", self.describe, methods=["GET"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
        ]
        handlers: Any = {HTTPException: answer_refusal, UserError: answer_user_error, Exception: answer_bug}
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    async def show_page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers={"content-security-policy": POLICY})

    async def check_health(self, request: Request) -> Response:
        return JSONResponse({"name": self.name, "ready": True})

    async def describe(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": self.name,
                **self.inputs.describe(),
                "classes": self.predictor.class_names,
                "test_accuracy": _test_accuracy(self.predictor.run.folder / "metrics.json"),
            }
        )

    async def predict(self, request: Request) -> Response:
        inputs = await self._read(request)
        found = await self.batching.predict(inputs)
        if found.problems:
            number, problem = next(iter(found.problems.items()))
            raise HTTPException(422, f"inputs[{number}]: {problem}")
        rows = found.probabilities.tolist()
        predictions = [
            {"class": name, "probability": max(row), "probabilities": dict(zip(found.class_names, row, strict=True))}
            for name, row in zip(found.classes, rows, strict=True)
        ]
        return JSONResponse({"predictions": predictions})

    async def explain(self, request: Request) -> Response:
        (value,) = await self._read(request, most=1)
        return JSONResponse(await self.batching.run(self._explain, value))

    async def _read(self, request: Request, **limit: int) -> list[Any]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"the request is larger than {MAX_BYTES:,} bytes")
        return self.inputs.read(request.headers.get("content-type", ""), bytes(body), **limit)

    def _explain(self, value: Any) -> dict[str, Any]:
        part = next(self.predictor.open([value]).parts)
        if part.problems:
            raise HTTPException(422, f"inputs[0]: {part.problems[0]}")
        features = self.predictor.features(part.inputs[torch.tensor([0])])
        return {"explanation": explain_sample(self.predictor, part), "similar": self.similar.find(features)}


class _Server(uvicorn.Server):
    """Calls `on_start` when the server accepts requests."""

    on_start: Any

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()


def explain_sample(predictor: Predictor, part: InputPart) -> dict[str, Any]:
    """Explain one sample: attributions for the most probable class, compared with the second most probable class.

    Args:
        predictor: The model.
        part: The first row is explained.

    Returns:
        The two classes as ``class`` and ``against``, and ``features`` or ``tokens`` with an ``attribution`` each, or the
        URL of an ``overlay``. The absolute values of the attributions sum to 1.
    """
    first, second = predictor.logits(part.inputs)[0].topk(2).indices.tolist()
    result: dict[str, Any] = {"class": predictor.class_names[first], "against": predictor.class_names[second]}
    names, attributions = explain_row(predictor, part, 0)
    if predictor.spec.modality == "image":
        return result | {"overlay": overlay_url(part.inputs[0], attributions)}
    normalized = (attributions / attributions.abs().sum().clamp(min=1e-12)).tolist()
    kind, key = ("tokens", "text") if predictor.spec.modality == "tokens" else ("features", "name")
    return result | {kind: [{key: name, "attribution": value} for name, value in zip(names, normalized, strict=True)]}


def answer_refusal(request: Request, error: HTTPException) -> Response:
    """Answer a request that the server refuses."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def answer_user_error(request: Request, error: UserError) -> Response:
    """Answer a request whose inputs the datamodule refuses."""
    return JSONResponse({"error": str(error)}, 422)


def answer_bug(request: Request, error: Exception) -> Response:
    """Answer a request that raised an unexpected exception. The terminal shows the traceback."""
    report_bug(error)
    return JSONResponse({"error": "internal error; the terminal of the server shows the traceback"}, 500)


def _test_accuracy(path: Path) -> float | None:
    """Return the accuracy in ``metrics.json``; None for a run without a test."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["test/accuracy"])
    except (OSError, ValueError, KeyError):
        return None
