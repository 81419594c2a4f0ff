"""A Hub on loopback: enough of its HTTP interface to push a folder and to load it again, in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

from .helpers import process_environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]] = {}

    def log_message(self, *args):
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_POST(self):
        path, body = urlparse(self.path).path, self.read_body()
        if path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            if request.get("type") == "space":
                name = f"spaces/{name}"
                if not request.get("sdk"):
                    self.answer_json({"error": "a space needs an sdk"}, 400)
                    return
            self.repositories.setdefault(name, {})
            self.answer_json({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            self.answer_json({"files": files, "commitOid": COMMIT})
        elif "/commit/" in path:
            kind, name = path.split("/")[2], "/".join(path.split("/")[3:5])
            name = name if kind == "models" else f"{kind}/{name}"
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            self.answer_json({"success": True, "commitUrl": url, "commitOid": COMMIT})
        else:
            self.answer_json({"error": f"no such address {path}"}, 404)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            self.answer_json({"name": "org", "type": "user", "orgs": []})
        elif parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            files = self.repositories.get(name)
            if files is None:
                self.answer_json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            elif "tree" in parts:
                self.answer_json([{"type": "file", "path": p, "size": len(c), "oid": COMMIT} for p, c in files.items()])
            else:
                self.answer_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]})
        elif "resolve" in parts:
            content = self.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            if content is None:
                self.answer_json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            else:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(content, **{"ETag": etag, "X-Repo-Commit": COMMIT})
        else:
            self.answer_json({"error": f"no such address {path}"}, 404)

    do_HEAD = do_GET


@contextmanager
def hub_on_loopback(cache: Path):
    """
    Yields the environment of processes that shall use this Hub, and its repositories: name -> path -> content. A
    Space's name begins with "spaces/".
    """
    repositories: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (HubHandler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    environment = process_environment()
    del environment["HF_HUB_OFFLINE"]
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_dummy",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        yield environment, repositories
    finally:
        server.shutdown()


@contextmanager
def used_by_this_process(environment: dict[str, str]) -> Iterator[None]:
    """
    Leads this process to the Hub of an environment, as far as a new `HfApi` goes, which is how the package pushes.
    huggingface_hub's own functions, and with them downloads and Trainer, keep the address that they were imported with.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", environment["HF_TOKEN"])
        yield
