"""Real HTTP servers on the loopback: one that can misbehave, and one that is a small Hub."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Site:
    """What a server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which the next bodies end
    statuses: list[int] = field(default_factory=list)  # answers given before any file
    ranges: bool = True
    etags: bool = True
    lengths: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def gets(self) -> list[str]:
        """The Range header of every GET of a file, in order; empty for the whole file."""
        return [span for method, _, span in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    """Serves a Site."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.site.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.site.statuses:
            return self.reply(self.site.statuses.pop(0), b"no\n")
        if path in self.site.redirects:
            return self.reply(302, b"", Location=self.site.redirects[path])
        self.file(path)

    def file(self, path: str, **headers: str) -> None:
        body = self.site.files.get(path)
        if body is None:
            return self.reply(404, b"not found\n")
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if self.site.etags:
            headers.setdefault("ETag", etag)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", etag) == etag
        if span is None or not self.site.ranges or not unchanged:
            return self.reply(200, body, **headers)
        begin = int(span[1])
        if begin >= len(body):
            return self.reply(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        self.reply(206, body[begin:], **headers)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.site.lengths:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and self.site.cuts and len(body) > self.site.cuts[0]:
            self.wfile.write(body[: self.site.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """One that takes it calmly when a client hangs up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(
    site: Site, handler: type[Handler] = Handler, host: str = "127.0.0.1"
) -> Iterator[Site]:
    """Serve `site` on a free port until the block ends; `host` is the address to listen on."""
    bound = type("Bound", (handler,), {"site": site})
    server = Server((host, 0), bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(Handler):
    """As much of the Hub as its client needs to fetch a model: ORG/NAME of site.files' paths.

    Files lie at /ORG/NAME/FILE. Names that end in .safetensors are large files to it: listed with
    a sha256, served from another address.
    """

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(revision|tree)/(.+)", path)
        file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self.site.asked.append((self.command, path, ""))
            return self.api(api[1], api[2], api[3])
        if file:
            return self.resolve(file[1], file[3])
        super().do_GET()

    def api(self, repo: str, kind: str, revision: str) -> None:
        prefix = f"/{repo}/"
        files = {k.removeprefix(prefix): v for k, v in self.site.files.items() if prefix in k}
        if not files:
            return self.error(404, "RepoNotFound")
        if repo.startswith("gated/"):
            return self.error(403, "GatedRepo")
        if revision not in ("main", "master", COMMIT):
            return self.error(404, "RevisionNotFound")
        if kind == "tree":
            entries = [self.entry(name, body, "path") for name, body in files.items()]
            return self.json([{**entry, "type": "file"} for entry in entries])
        siblings = [self.entry(name, body, "rfilename") for name, body in files.items()]
        self.json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def entry(self, name: str, body: bytes, key: str) -> dict[str, Any]:
        entry: dict[str, Any] = {key: name, "size": len(body), "oid": "0" * 40, "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            sha256 = self.listed(name, body)
            large = {"size": len(body), "sha256": sha256, "oid": sha256, "pointerSize": 134}
            entry["lfs"] = large
        return entry

    def listed(self, name: str, body: bytes) -> str:
        """The sha256 the Hub lists."""
        return hashlib.sha256(body).hexdigest()

    def resolve(self, repo: str, name: str) -> None:
        path = f"/{repo}/{name}"
        body = self.site.files.get(path, b"")
        headers = {"X-Repo-Commit": COMMIT}
        if name.endswith(".safetensors") and self.command == "HEAD":
            headers["X-Linked-Size"] = str(len(body))
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        self.site.asked.append((self.command, path, self.headers.get("Range", "")))
        self.file(path, **headers)

    def error(self, status: int, code: str) -> None:
        self.reply(status, b"{}", **{"X-Error-Code": code, "Content-Type": "application/json"})

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})


class ModelScopeHandler(Handler):
    """As much of ModelScope as its client needs: listings, and files by their FilePath."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        found = re.fullmatch(r"/api/v1/models/([\w.-]+/[\w.-]+)/repo(/files)?", address.path)
        if found is None:
            return super().do_GET()
        prefix = f"/{found[1]}/"
        if not any(path.startswith(prefix) for path in self.site.files):
            return self.json(404, {"Code": 10010205001, "Message": "not exists", "Success": False})
        if found[2]:
            self.site.asked.append((self.command, address.path, ""))
            return self.json(
                200, {"Code": 200, "Success": True, "Data": {"Files": self.list(prefix)}}
            )
        path = prefix + query["FilePath"]
        self.site.asked.append((self.command, path, self.headers.get("Range", "")))
        self.file(path)

    def list(self, prefix: str) -> list[dict[str, Any]]:
        """The files of a repository as ModelScope lists them."""
        return [
            {
                "Path": path.removeprefix(prefix),
                "Size": len(body),
                "Sha256": hashlib.sha256(body).hexdigest(),
                "Type": "blob",
            }
            for path, body in self.site.files.items()
            if path.startswith(prefix)
        ]

    def json(self, status: int, value: Any) -> None:
        self.reply(status, json.dumps(value).encode(), **{"Content-Type": "application/json"})
