"""The server: its predictions are those of predict.py, bad requests and mistakes are one line, and the page works."""

import asyncio
import base64
import http.client
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import serve
from engine.config.signatures import PROJECT
from engine.contracts import DataError, UserError
from engine.inference.predictor import Predictions, load
from engine.inference.server import PAGE, BatchingPredictor
from tests import files
from tests.browser import CHROMIUM, browser
from tests.runs import IRIS, WITHOUT_PICTURES, figures, run

QUICK = ["trainer.max_epochs=1", "trainer.precision=32-true", *WITHOUT_PICTURES]
FLOWER = [5.1, 3.5, 1.4, 0.2]
NOTHING_OUTSIDE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"


def in_browser(test: Any) -> Any:
    """Mark a test that needs Chromium."""
    return pytest.mark.browser(
        pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")(test))
    )


class Server:
    """A running server."""

    def __init__(self, folder: Path, process: subprocess.Popen, port: int) -> None:
        self.folder, self.process, self.port = folder, process, port

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
        """Returns the status, the content and the headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def post(self, path: str, *inputs: Any) -> tuple[int, Any]:
        body = json.dumps({"inputs": inputs}).encode()
        status, content, _ = self.request("POST", path, body, content_type="application/json")
        return status, json.loads(content)

    def predict(self, *inputs: Any) -> list[dict[str, Any]]:
        status, answer = self.post("/predict", *inputs)
        assert status == 200, answer
        return answer["predictions"]

    def explain(self, value: Any) -> dict[str, Any]:
        """The answer, once the training samples have been read."""
        end = time.monotonic() + 60
        while True:
            status, answer = self.post("/explain", value)
            assert status == 200, answer
            if answer["similar"] is not None or time.monotonic() > end:
                return answer
            time.sleep(0.2)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "serve.py", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r".* is served at http://127\.0\.0\.1:(\d+) \(Ctrl-C ends the server\)\n", line)
        assert found, line + process.stderr.read()
        yield Server(folder, process, int(found[1]))
    finally:
        process.kill()
        process.communicate()


def expect(found: list[dict[str, Any]], expected: Predictions) -> None:
    assert [one["class"] for one in found] == expected.classes
    rows = [[one["probabilities"][name] for name in expected.class_names] for one in found]
    np.testing.assert_allclose(rows, expected.probabilities, atol=1e-6)
    np.testing.assert_array_equal([one["probability"] for one in found], np.max(rows, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    os.chdir(PROJECT)
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def iris(data):
    with serving(run(data / "iris", "--config", IRIS, *QUICK)) as server:
        yield server


@pytest.fixture(scope="module")
def table(data):
    files.write_table(data / "table/train.csv", 300)
    options = [f"data.train={data}/table/train.csv", "data.target=label", "model.hidden_sizes=[16]"]
    options += ["model.num_members=1", "callbacks.early_stopping=null", *QUICK]
    with serving(run(data / "tables", "--config", "configs/table_mlp.yaml", *options)) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(data):
    files.write_pictures(data / "pictures", 120)
    options = [f"data.train={data}/pictures", "data.image_size=16", f"data.cache={data}/cache", "model.widths=[8]"]
    folder = run(data / "photos", "--config", "configs/pictures_cnn.yaml", *options, "data.batch_size=16", *QUICK)
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def texts(data):
    files.write_texts(data / "text/train.tsv", 100)
    options = [f"data.train={data}/text/train.tsv", "data.test=null", "data.vocab_size=200", f"data.cache={data}/cache"]
    model = ["model.hidden_size=16", "model.num_layers=1", "model.num_heads=2"]
    with serving(run(data / "texts", "--config", "configs/text_bert.yaml", *options, *model, *QUICK)) as server:
        yield server


def test_features_are_a_list_or_a_dictionary(iris):
    expected = load(iris.folder).predict([FLOWER, [6, 3, 5, 2]])
    expect(iris.predict(FLOWER, [6, 3, 5, 2]), expected)
    names = [column["name"] for column in json.loads(iris.request("GET", "/description")[1])["columns"]]
    assert names == ["sepal length", "sepal width", "petal length", "petal width"]
    expect(iris.predict(dict(zip(reversed(names), reversed(FLOWER), strict=True))), expected[:1])


@pytest.mark.needs("table")
def test_rows_of_a_table(table):
    predictor = load(table.folder)
    columns = json.loads(table.request("GET", "/description")[1])["columns"]
    assert {column["name"]: column["categories"] or [] for column in columns} == predictor.model.hparams["columns"]
    row = {column["name"]: column["categories"][0] if column["categories"] else 1.5 for column in columns}
    category = next(column["name"] for column in columns if column["categories"])
    rows = [row, row | {category: None}, row | {category: "never seen"}, dict.fromkeys(row)]
    expect(table.predict(*rows), predictor.predict(rows))


@pytest.mark.needs("pictures")
def test_pictures_of_any_size_and_mode(pictures, tmp_path):
    image = Image.open(next(pictures.folder.parents[2].joinpath("pictures").rglob("*.png")))
    contents = []
    for mode, suffix, size in (("RGB", "png", (16, 16)), ("RGB", "jpeg", (300, 200)), ("LA", "png", (20, 40))):
        image.convert(mode).resize(size).save(tmp_path / f"{len(contents)}.{suffix}")
        contents.append((tmp_path / f"{len(contents)}.{suffix}").read_bytes())
    expected = load(pictures.folder).predict(sorted(map(str, tmp_path.iterdir())))
    expect(pictures.predict(*(base64.b64encode(content).decode() for content in contents)), expected)
    for number, content in enumerate(contents):
        status, answer, _ = pictures.request("POST", "/predict", content, content_type="image/png")
        assert status == 200
        expect(json.loads(answer)["predictions"], expected[number : number + 1])


@pytest.mark.needs("text", "bert")
def test_texts(texts):
    given = ["a great film", "awful", "the plot was boring and the actor was poor"]
    expect(texts.predict(*given), load(texts.folder).predict(given))


@pytest.mark.needs("text", "bert")
def test_the_tokenizer_is_loaded_once(texts, monkeypatch):
    predictor, loaded = load(texts.folder), []
    original = importlib.import_module("datamodules.text").pretrained_tokenizer
    monkeypatch.setattr(
        "datamodules.text.pretrained_tokenizer", lambda *names: loaded.append(names) or original(*names)
    )
    assert predictor.predict(["great"]).classes == predictor.predict(["great"]).classes
    assert len(loaded) == 1


def test_the_description_of_a_run(iris):
    found = json.loads(iris.request("GET", "/description")[1])
    assert found["name"] == "/".join(iris.folder.parts[-2:])
    assert found["classes"] == ["setosa", "versicolor", "virginica"]
    assert (found["modality"], found["shape"]) == ("features", [4])
    assert found["test_accuracy"] == figures(iris.folder)["test/accuracy"]
    assert json.loads(iris.request("GET", "/health")[1]) == {"name": found["name"], "ready": True}


def test_an_explanation_of_features(iris):
    answer = iris.explain(FLOWER)
    shares = {one["name"]: one["attribution"] for one in answer["explanation"]["features"]}
    assert list(shares) == ["sepal length", "sepal width", "petal length", "petal width"]
    assert sum(map(abs, shares.values())) == pytest.approx(1)
    probabilities = iris.predict(FLOWER)[0]["probabilities"]
    ranked = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
    assert [answer["explanation"][name] for name in ("class", "against")] == ranked[:2]
    similarities = [one["similarity"] for one in answer["similar"]]
    assert len(similarities) == 5
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.needs("pictures")
def test_an_explanation_of_a_picture(pictures):
    path = next(pictures.folder.parents[2].joinpath("pictures").rglob("*.png"))
    answer = pictures.explain(base64.b64encode(path.read_bytes()).decode())
    for url in (answer["explanation"]["overlay"], *(one["picture"] for one in answer["similar"])):
        start, _, content = url.partition(",")
        assert start == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (16, 16)


@pytest.mark.needs("text", "bert")
def test_an_explanation_of_a_text(texts):
    answer = texts.explain("great film")
    tokens = answer["explanation"]["tokens"]
    assert tokens[0]["text"] == "[CLS]"
    assert sum(abs(token["attribution"]) for token in tokens) == pytest.approx(1)
    assert len(answer["similar"]) == 5


@pytest.mark.needs("table")
@pytest.mark.slow
def test_without_the_training_data_there_are_no_similar_samples(table, tmp_path):
    folder = shutil.copytree(table.folder, tmp_path / "runs/table_mlp/moved")
    config = folder / "config.yaml"
    config.write_text(re.sub(r"train: \S+", f"train: {tmp_path}/gone.csv", config.read_text()))
    with serving(folder) as server:
        assert server.process.stderr.readline().startswith("note: similar training samples are not available: ")
        columns = json.loads(server.request("GET", "/description")[1])["columns"]
        row = {column["name"]: None for column in columns}
        assert server.post("/explain", row)[1]["similar"] is None
        assert server.predict(row)


def refused(server: Server, status: int, message: str, body: bytes, kind: str = "application/json") -> None:
    """Send a bad request. The answer is one line of JSON, and the server answers the next request."""
    found, content, _ = server.request("POST", "/predict", body, content_type=kind)
    assert (found, list(json.loads(content))) == (status, ["error"]), content
    assert message in json.loads(content)["error"]
    assert b"\n" not in content
    assert b"Traceback" not in content
    assert server.request("GET", "/health")[0] == 200


BAD_FEATURES = [
    (400, "the request is not JSON", b""),
    (400, "the request is not JSON", b'{"inputs": [[1, 2, 3'),
    (400, "the request is not JSON", b"\xff\xfe\x00"),
    (400, "nested too deeply", b"[" * 100_000),
    (400, 'the request is not {"inputs": [...]}', b"[[1, 2, 3, 4]]"),
    (400, 'the request is not {"inputs": [...]}', b"{}"),
    (400, 'the request is not {"inputs": [...]}', b'{"inputs": "1, 2, 3, 4"}'),
    (400, 'the request is not {"inputs": [...]}', b'{"inputs": [[1, 2, 3, 4]], "more": 1}'),
    (422, "the request has 0 inputs; send 1 to 1,000 inputs", b'{"inputs": []}'),
    (422, "the request has 1,001 inputs", json.dumps({"inputs": [FLOWER] * 1001}).encode()),
    (422, "inputs[0]: 3 numbers; the model takes 4", b'{"inputs": [[1, 2, 3]]}'),
    (422, "inputs[1]: the value is not a finite number", b'{"inputs": [[1, 2, 3, 4], [1, 2, 3, "4"]]}'),
    (422, "inputs[0]: the value is not a finite number", b'{"inputs": [[1, 2, 3, NaN]]}'),
    (422, "inputs[0]: the value is not a finite number", b'{"inputs": [[1, 2, 3, true]]}'),
    (422, "inputs[0]: the value is not a finite number", b'{"inputs": [[1, 2, 3, [[[4]]]]]}'),
    (422, "inputs[0]: the value is not a finite number", b'{"inputs": [[1, 2, 3, 1%s]]}' % (b"0" * 5000)),
    (422, "inputs[0]: a value is NaN or infinite", b'{"inputs": [[1, 2, 3, 1e39]]}'),
    (422, "inputs[0]: the model takes a list of numbers or an object", b'{"inputs": ["a text"]}'),
    (422, "inputs[0]: no column 'sepal width'", b'{"inputs": [{"sepal length": 1}]}'),
    (413, "the request is larger than 10,000,000 bytes", b" " * 10_000_001),
]


@pytest.mark.parametrize(("status", "message", "body"), BAD_FEATURES, ids=range(len(BAD_FEATURES)))
def test_a_bad_request_is_one_line(status, message, body, iris):
    refused(iris, status, message, body)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("DELETE", "/", 405), ("GET", "/../etc/passwd", 404)]
)
def test_a_wrong_path_or_method_is_one_line(method, path, status, iris):
    found, content, _ = iris.request(method, path)
    assert (found, list(json.loads(content))) == (status, ["error"])


@pytest.mark.needs("table")
def test_a_bad_row_is_one_line(table):
    columns = json.loads(table.request("GET", "/description")[1])["columns"]
    row = {column["name"]: None for column in columns}
    number = next(column["name"] for column in columns if not column["categories"])
    category = next(column["name"] for column in columns if column["categories"])
    missing = {name: value for name, value in row.items() if name != number}
    for message, bad in (
        (f"no column '{number}'; give null for a missing value", missing),
        ("unknown column 'more'", row | {"more": 1}),
        (f"column '{number}': the value is not a finite number", row | {number: "12"}),
        (f"column '{category}': the value is not a string", row | {category: 3}),
        (f"column '{category}': the text has an unpaired surrogate", row | {category: "\ud800"}),
        ("the model takes an object with the columns", [1, 2]),
    ):
        refused(table, 422, f"inputs[0]: {message}", json.dumps({"inputs": [bad]}).encode())


@pytest.mark.needs("pictures")
def test_a_bad_picture_is_one_line(pictures):
    huge = io.BytesIO()
    Image.new("1", (8000, 7000)).save(huge, "PNG")
    whole = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(whole, "PNG")
    for message, content in (
        ("cannot identify image file", b"no picture"),
        ("cannot identify image file", b""),
        ("truncated", whole.getvalue()[:60]),
        ("exceeds limit of 50000000 pixels", huge.getvalue()),
    ):
        refused(pictures, 422, message, content, "image/png")
        encoded = base64.b64encode(content).decode()
        refused(pictures, 422, message, json.dumps({"inputs": [encoded]}).encode())
    refused(pictures, 422, "inputs[0]: the picture is not base64", b'{"inputs": ["%%%"]}')
    refused(pictures, 422, "inputs[0]: the model takes a string with the base64 code", b'{"inputs": [12]}')


@pytest.mark.needs("text", "bert")
def test_a_bad_text_is_one_line(texts):
    for message, value in (
        ("the text is empty", " \n"),
        ("the text has 100,001 characters; at most 100,000 are allowed", "a" * 100_001),
        ("the text has an unpaired surrogate", "\udfff"),
        ("the model takes a string", ["one", "two"]),
        ("the model takes a string", None),
    ):
        refused(texts, 422, f"inputs[0]: {message}", json.dumps({"inputs": [value]}).encode())
    refused(texts, 415, "send application/json", b"x", "image/png")


def test_a_page_of_another_site_is_refused(iris):
    """A browser sends such requests without a question only if they have a plain type, and no data may be read."""
    body = json.dumps({"inputs": [FLOWER]}).encode()
    refused(iris, 415, "send application/json", body, "text/plain")
    refused(iris, 415, "send application/json", body, "application/x-www-form-urlencoded")
    status, _, headers = iris.request("OPTIONS", "/predict", origin="http://evil.example")
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert iris.request("GET", "/description", host=host)[0] == 400
    assert iris.request("GET", "/description", host="localhost:1234")[0] == 200


def test_a_bad_request_does_not_disturb_others(iris):
    rng = np.random.default_rng(0)
    flowers = rng.uniform(0.5, 7, (60, 4)).astype(np.float32)
    expected = load(iris.folder).predict(flowers)

    def send(number: int) -> tuple[int, Any]:
        flower = flowers[number].tolist()
        return iris.post("/predict", flower if number % 3 else [*flower[:3], 1e39])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, range(60)))
    assert [status for status, _ in answers] == [200 if number % 3 else 422 for number in range(60)]
    for number, (_, answer) in enumerate(answers):
        if number % 3:
            expect(answer["predictions"], expected[number : number + 1])


class SlowPredictor:
    """Predicts class `value`, refuses negative values, and waits in the first batch."""

    batch_size = 1000

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()

    def predict(self, values: list[int], skip_broken: bool) -> Predictions:
        self.batches.append(values)
        assert self.may_go_on.wait(30)
        if min(values) < 0:
            raise DataError(f"{min(values)} is negative")
        return Predictions(values, [*map(str, range(100))], np.eye(100, dtype=np.float32)[values], {})


def predict_at_once(max_batch: int, *requests: list[int]) -> tuple[list[list[int]], list[Any]]:
    """Returns the batches, and the answers to the requests, which all wait while the first is computed."""
    predictor: Any = SlowPredictor()

    async def main() -> list[Any]:
        batching = BatchingPredictor(predictor, max_batch)
        answers = [asyncio.ensure_future(batching.predict(request)) for request in requests]
        while not predictor.batches:
            await asyncio.sleep(0.01)
        predictor.may_go_on.set()
        return await asyncio.gather(*answers, return_exceptions=True)

    answers = asyncio.run(main())
    return predictor.batches, [answer if isinstance(answer, Exception) else answer.classes for answer in answers]


def test_waiting_requests_are_one_batch():
    batches, answers = predict_at_once(4, [1], [2], [3, 4], [5], [6], [7, 8, 9, 10, 11], [12])
    assert [value for batch in batches for value in batch] == list(range(1, 13))
    later = [batch for batch in batches if batch[0] > 1]
    assert later[-2:] == [[7, 8, 9, 10, 11], [12]]  # a request is not divided
    assert all(len(batch) <= 4 for batch in later[:-2])
    assert len(batches) < 7
    assert answers == [["1"], ["2"], ["3", "4"], ["5"], ["6"], ["7", "8", "9", "10", "11"], ["12"]]


def test_an_error_concerns_only_its_request():
    _, answers = predict_at_once(64, [1], [2], [-3], [4])
    assert [answers[0], answers[1], answers[3]] == [["1"], ["2"], ["4"]]
    assert str(answers[2]) == "-3 is negative"


MISTAKES = [
    (["no_such_run"], "matches no run below"),
    ([], "the following arguments are required: RUN"),
    (["RUN", "--port", "65536"], "--port: 65536 is not a number from 0 to 65535"),
    (["RUN", "--port", "http"], "argument --port: invalid int value: 'http'"),
    (["RUN", "--port", "USED"], "(Address already in use); choose another --port"),
    (["RUN", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid, port 8000"),
    (["RUN", "--max-batch", "0"], "--max-batch: 0 is below 1"),
    (["RUN", "--port", "0", "--device", "gpu7"], "--device: gpu7 is not a device of this machine"),
    (["DAMAGED", "--port", "0"], "best.ckpt"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line(arguments, message, iris, tmp_path):
    damaged = shutil.copytree(iris.folder, tmp_path / "runs/iris_mlp/damaged")
    with (damaged / "checkpoints/best.ckpt").open("r+b") as file:
        file.truncate(1000)
    names = {"RUN": iris.folder, "DAMAGED": damaged, "USED": iris.port}
    with pytest.raises(UserError) as caught:
        serve.main([str(names.get(word, word)) for word in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_are_sent_at_once():
    """asyncio sets TCP_NODELAY only for sockets with this protocol. Without it, each answer takes 40 ms."""
    with serve.listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_missing_package_is_named(iris, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(UserError, match=r"needs the package uvicorn; run: pip install -e '\.\[serve\]' -c constraints"):
        serve.main([str(iris.folder)])


def test_a_mistake_of_the_command_ends_with_code_2(iris):
    command = [sys.executable, "-X", "importtime", "serve.py", str(iris.folder), "--port", str(iris.port)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    imports, lines = [], []
    for line in done.stderr.splitlines():
        (imports if line.startswith("import time:") else lines).append(line)
    assert done.returncode == 2
    assert re.fullmatch(r"error: command line: cannot listen on 127\.0\.0\.1, port \d+ \(.*", "\n".join(lines))
    assert not [line for line in imports if line.split()[-1] in ("torch", "starlette", "uvicorn")]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_ends_the_server_and_frees_the_port(signum, iris):
    with serving(iris.folder) as server:
        waiting = socket.create_connection(("127.0.0.1", server.port))  # a request that never ends
        waiting.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        waiting.sendall(b"Content-Length: 100\r\n\r\n{")
        body = json.dumps({"inputs": [FLOWER] * 1000}).encode()
        thread = threading.Thread(target=lambda: ignore_errors(server, body))
        thread.start()
        assert server.request("GET", "/health")[0] == 200
        server.process.send_signal(signum)
        out, err = server.process.communicate(timeout=30)
        thread.join()
        waiting.close()
        assert (server.process.returncode, out, err) == (-signum, "", "")  # a shell shows 130 or 143
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", server.port))
            other.listen()


def ignore_errors(server: Server, body: bytes) -> None:
    """Send a request that a signal may interrupt."""
    with suppress(OSError, http.client.HTTPException):
        server.request("POST", "/predict", body, content_type="application/json")


def test_the_page_names_no_other_host():
    assert not re.findall(r"https?://|//[\w-]+\.\w|@import|url\(|\bsrc=", PAGE.read_text(encoding="utf-8"))


def test_a_browser_may_load_nothing_from_other_hosts(iris):
    policy = iris.request("GET", "/")[2]["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy


@pytest.fixture(scope="module")
def page():
    """Chromium, which resolves no name but 127.0.0.1."""
    with browser(NOTHING_OUTSIDE) as page:
        yield page


def shown(prediction: dict[str, Any]) -> list[str]:
    """What the page shows of a prediction: its bars, and the legend of the explanation."""
    bars = [f"{name}\n{100 * value:.1f} %" for name, value in prediction["probabilities"].items()]
    return [*bars, f"for {prediction['class']}"]


@in_browser
def test_the_page_predicts_features(page, iris):
    page.open(f"http://127.0.0.1:{iris.port}/")
    name = "/".join(iris.folder.parts[-2:])
    page.wait(name, f"test accuracy {100 * figures(iris.folder)['test/accuracy']:.1f} %", "petal width", "Predict")
    assert page.evaluate("document.title") == name
    iris.explain(FLOWER)
    page.evaluate(f"document.querySelectorAll('input').forEach((input, i) => input.value = {FLOWER}[i])")
    page.evaluate("document.querySelector('button').click()")
    (prediction,) = iris.predict(FLOWER)
    page.wait(*shown(prediction), "similarity 1.00")
    found = prediction["probabilities"]
    order = sorted(found, key=found.__getitem__, reverse=True)
    assert page.evaluate("[...document.querySelectorAll('#classes .name')].map(one => one.textContent)") == order
    assert page.evaluate("document.getElementById('error').hidden")


@pytest.mark.needs("table")
@in_browser
def test_the_page_predicts_a_row(page, table):
    columns = json.loads(table.request("GET", "/description")[1])["columns"]
    page.open(f"http://127.0.0.1:{table.port}/")
    page.wait(*(column["name"] for column in columns))
    labels = page.evaluate("[...document.querySelectorAll('label')].map(one => one.firstChild.textContent)")
    assert labels == [column["name"] for column in columns]
    row = {column["name"]: None for column in columns}
    category = next(column for column in columns if column["categories"])
    row[category["name"]] = category["categories"][-1]
    place = [column["name"] for column in columns].index(category["name"])
    choice = json.dumps(category["categories"][-1])
    page.evaluate(f"document.querySelectorAll('input, select')[{place}].value = {choice}")
    page.evaluate("document.querySelector('button').click()")
    page.wait(*shown(table.predict(row)[0]))


@pytest.mark.needs("pictures")
@pytest.mark.parametrize("way", ["choose", "drop"])
@in_browser
def test_the_page_predicts_a_picture(way, page, pictures):
    path = next(pictures.folder.parents[2].joinpath("pictures").rglob("*.png"))
    pictures.explain(base64.b64encode(path.read_bytes()).decode())
    page.open(f"http://127.0.0.1:{pictures.port}/")
    page.wait("or drop it here")
    if way == "choose":
        page.choose_file(path)
    else:
        x, y = page.evaluate(
            "(() => { const box = document.querySelector('.drop').getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        page.drop_file(path, x, y)
    (prediction,) = pictures.predict(base64.b64encode(path.read_bytes()).decode())
    visible = page.wait(*shown(prediction), "picture data:image/png", "picture blob:")
    assert visible.count("picture data:image/png") == 6  # the attributions and five similar samples


@pytest.mark.needs("pictures")
@in_browser
def test_the_page_shows_an_error(page, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.open(f"http://127.0.0.1:{pictures.port}/")
    page.wait("or drop it here")
    page.choose_file(tmp_path / "broken.png")
    page.wait("Error: inputs[0]: cannot identify image file")


@pytest.mark.needs("text", "bert")
@in_browser
def test_the_page_predicts_a_text(page, texts):
    page.open(f"http://127.0.0.1:{texts.port}/")
    page.wait("Text")
    page.evaluate("document.querySelector('textarea').value = 'great film'")
    page.evaluate("document.querySelector('button').click()")
    page.wait(*shown(texts.predict("great film")[0]), "[CLS]")
