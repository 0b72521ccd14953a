"""Keep a page up to date and serve it to browsers on this machine."""

import http.server
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

LEAST_PAUSE = 5.0  # seconds between reads of the source
SHARE = 4.0  # reading may take 1 / this of the time, because cells train on the same processor
LOCAL = ("127.0.0.1", "localhost")

# Added to the served page. The browser keeps its position on the page when it reloads.
RELOAD = b"""<script>
setInterval(async () => {
  try {
    const reply = await fetch("/", { method: "HEAD", cache: "no-store" });
    const version = reply.headers.get("ETag");
    if (window.pageVersion && version !== window.pageVersion) location.reload();
    window.pageVersion = version;
  } catch { /* the server has ended: the page stays as it is */ }
}, 3000);
</script>
</body>"""


class PageServer:
    """Serves one page on a free port of the loopback address (or on `port`) from a separate thread.

    It serves no files. It refuses requests that name another host, so that no web site can read the page (DNS
    rebinding). Raises OSError if the port is in use.
    """

    def __init__(self, port: int = 0) -> None:
        self._page, self._version = b"", 0
        page = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name that the library requires
                self._answer(page._page)

            def do_HEAD(self) -> None:
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                host = self.headers.get("Host", "").rpartition(":")[0]
                if host not in LOCAL or self.path != "/":
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("ETag", f'"{page._version}"')
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Length", str(len(page._page)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer((LOCAL[0], port), Handler)
        self.url = f"http://{LOCAL[0]}:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def show(self, page: str) -> None:
        """Serve `page` from now on. Open browsers reload it if it has changed."""
        before, end, after = page.encode().rpartition(b"</body>")
        content = before + RELOAD + after if end else page.encode()
        if content != self._page:
            self._page = content
            self._version += 1

    def close(self) -> None:
        """Stop the thread and release the port."""
        self._server.shutdown()
        self._server.server_close()


def keep_current(look: Callable[[], str], server: PageServer, ended: Callable[[], bool]) -> None:
    """Call `look` for the page and serve the result, repeatedly until `ended`, then once more."""
    while not ended():
        began = time.monotonic()
        server.show(look())
        until = time.monotonic() + max(LEAST_PAUSE, SHARE * (time.monotonic() - began))
        while time.monotonic() < until and not ended():
            time.sleep(0.2)
    server.show(look())  # with the cells that were finished last
