"""A local stand-in for the Hub's HTTP interface, as far as making a repository and committing files to it goes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OID = "0" * 40


@dataclass
class FakeHub:
    """What the server was told: repositories with the settings they were made with, and the files of each commit."""

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    refuses: bool = False


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Silent."""

        def do_POST(self) -> None:
            body = self._body()
            hub.requests.append(f"POST {self.path}")
            hub.tokens.add(self.headers.get("authorization", ""))
            if hub.refuses:
                self._answer({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                if name in hub.repos:
                    self._answer({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
                    return
                hub.repos[name] = wanted
                self._answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
                self._answer({"files": modes})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**thing, "actions": {"upload": {"href": f"{hub.url}/blob/{thing['oid']}"}}}
                    for thing in json.loads(body)["objects"]
                ]
                self._answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                hub.commits.append(lines[0]["value"])
                for line in lines[1:]:
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.blobs[value["oid"]]
                self._answer({"commitUrl": f"{hub.url}/me/x/commit/{OID}", "commitOid": OID})
            else:
                self._answer({"error": "no such page"}, 404)

        def do_PUT(self) -> None:
            hub.requests.append(f"PUT {self.path}")
            hub.blobs[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

    return Handler


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running stand-in on a free port."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
