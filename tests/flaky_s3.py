"""A real S3 server (moto's) on loopback, behind a proxy that is slow, refuses, cuts connections or is down.

It proves the store against the protocol and the real client, not against the limits of a hosted service.
"""

import contextlib
import http.client
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from loopback import Quiet, served

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # botocore's own retries, which hide what the store does
}


@dataclass
class Proxy:
    """How requests are answered."""

    url: str = ""
    down: bool = False
    fault: Callable[[str, str], str] = field(default=lambda method, path: "")
    """For a request's method and path: "busy" (503), "cut" before it is passed on, "lost" (passed on, its
    answer cut), "slow", or ""."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of all requests."""


@contextlib.contextmanager
def serve() -> Iterator[Proxy]:
    """A server with an empty bucket named ``bucket``."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    proxy = Proxy()

    class Handler(Quiet, BaseHTTPRequestHandler):
        def _pass(self) -> None:
            proxy.seen.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = "cut" if proxy.down else proxy.fault(self.command, self.path)
            if fault == "cut":
                self.close_connection = True
                return
            if fault == "busy":
                self._answer(503, {"Content-Type": "application/xml"}, BUSY)
                return
            if fault == "slow":
                time.sleep(0.2)
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if fault == "lost":
                self.close_connection = True
                return
            self._answer(answer.status, dict(answer.getheaders()), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    connection = http.client.HTTPConnection(host, port)
    connection.request("PUT", "/bucket")
    assert connection.getresponse().status == 200
    connection.close()
    try:
        with served(Handler) as proxy.url:
            yield proxy
    finally:
        moto.stop()
