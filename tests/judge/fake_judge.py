"""A local service that looks like OpenAI's chat completions and misbehaves as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

# Counts as the user's: no test may find it anywhere but in the Authorization header.
KEY = "sk-test-5f1c9e77a0"


@dataclass
class Act:
    """What the service does with one request: waits, answers, or breaks off."""

    status: int = 200
    body: str | None = None
    text: str = "Good. Rating: [[7]]"
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


# Gets the request's body and how often the same messages came before.
Script = Callable[[dict[str, Any], int], Act]


class QuietServer(ThreadingHTTPServer):
    """A server that says nothing of clients that hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that was refused does not wait for the rest."""


class FakeJudge:
    """The service as a context manager; `url` is its address, `requests` what came in, `peak` how many at once."""

    def __init__(self, script: Script = lambda body, before: Act()) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.active = self.peak = 0
        self.lock = threading.Lock()
        self.over = threading.Event()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                judge.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request as the script says."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            before = sum(body["messages"] == other["messages"] for other in self.requests)
            self.requests.append(body)
            self.keys.add(handler.headers["Authorization"])
            self.active += 1
            self.peak = max(self.peak, self.active)
        act = self.script(body, before) if handler.path == "/v1/chat/completions" else Act(status=404)
        self.over.wait(act.wait)
        with self.lock:
            self.active -= 1
        if act.drop:
            handler.close_connection = True
            return
        said = (completion(act.text) if act.body is None else act.body).encode()
        try:
            handler.send_response(act.status)
            for name, value in {"Content-Type": "application/json", **act.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(said)))
            handler.end_headers()
            handler.wfile.write(said)
        except OSError:
            pass  # The client had enough of waiting.


def completion(text: str | None) -> str:
    """A whole chat completion of 100 tokens in and 20 out."""
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
    )
