"""A stand-in for the Hugging Face hub on 127.0.0.1, with the few URLs that list and download a repository's files."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def entry(path: Path, folder: Path) -> dict[str, object]:
    """The description of a file or folder in the list of a repository's content."""
    kind = "file" if path.is_file() else "directory"
    return {"type": kind, "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0" * 40}


@contextmanager
def serve(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories ("models/a/b", "datasets/c/d" -> folder). Yields the URL of the hub and the list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer()

        def answer(self) -> None:
            path, _, query = self.path.replace("%2F", "/").partition("?")
            requests.append(f"{self.command} {path}")
            for name, folder in repositories.items():
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                names = [str(file.relative_to(folder)) for file in files]
                api, plain = f"/api/{name}", f"/{name.removeprefix('models/')}"
                if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                    siblings = [{"rfilename": name} for name in names]
                    facts = {
                        "id": name.partition("/")[2],
                        "sha": COMMIT,
                        "siblings": siblings,
                        "tags": [],
                        "private": False,
                    }
                    return self.send(json.dumps(facts).encode())
                if match := re.fullmatch(rf"{api}/tree/(?:main|{COMMIT})(?:/(.*))?", path):
                    place = folder / (match.group(1) or "")
                    listed = place.rglob("*") if "recursive=true" in query.lower() else place.glob("*")
                    return self.send(json.dumps([entry(path, folder) for path in sorted(listed)]).encode())
                if match := re.fullmatch(rf"{plain}/resolve/(?:main|{COMMIT})/(.+)", path):
                    if match.group(1) in names:
                        return self.send((folder / match.group(1)).read_bytes())
                    return self.send(b"Entry not found", 404, "EntryNotFound")
            return self.send(b"Repository not found", 404, "RepoNotFound")

        def send(self, content: bytes, status: int = 200, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
