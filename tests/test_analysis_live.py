"""The page that stays current: on loopback only, new when a cell finishes, ended with its parent."""

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from analysis_stores import grid, made_store

from hiddenweights import cli
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.page import live
from hiddenweights.identity import cell_id

CELLS = grid(archs=("conv2",), ks=(0.1, 0.5), seeds=(0, 1))


def get(url: str, host: str | None = None) -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read().decode(), reply.headers["ETag"]


def test_an_open_page_learns_of_a_new_version_and_nothing_else_is_served() -> None:
    server = live.PageServer()
    try:
        server.show("<html><body>one</body></html>")
        page, version = get(server.url)
        assert "one" in page
        assert "location.reload" in page
        server.show("<html><body>one</body></html>")
        assert get(server.url)[1] == version
        server.show("<html><body>two</body></html>")
        assert get(server.url)[1] != version
        for url, host in ((server.url + "etc/passwd", None), (server.url, "example.org:80")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url, host)
    finally:
        server.close()


def test_the_page_follows_the_store_and_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS)
    last = store / "cells" / cell_id(CELLS[-1]) / "result.json"
    content = last.read_bytes()
    last.unlink()
    monkeypatch.setattr(live, "LEAST_PAUSE", 0.1)
    monkeypatch.setattr(live, "SHARE", 0.0)
    shown: list[str] = []
    seen = threading.Event()

    class Server(live.PageServer):
        def show(self, page: str) -> None:
            super().show(page)
            shown.append(get(self.url)[0])
            seen.set()

    monkeypatch.setattr(live, "PageServer", Server)
    parent = [1234]
    monkeypatch.setenv(cli.PARENT, "1234")
    monkeypatch.setattr("os.getppid", lambda: parent[0])

    def finish() -> None:
        assert seen.wait(60)
        last.write_bytes(content)
        seen.clear()
        assert seen.wait(60)
        parent[0] = 1  # as the system does it for an orphan

    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    out = ["--out", str(tmp_path / "out")]
    assert main(["report", "--no-cache", "--from", str(store), *out, "--watch"]) == 0
    thread.join()
    assert f"{len(CELLS) - 1} finished cells" in shown[0]
    assert f"{len(CELLS)} finished cells" in shown[-1]
    assert f"{len(CELLS)} finished cells" in (tmp_path / "out" / "report.html").read_text()


def test_before_the_first_cell_the_page_waits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hiddenweights", "analysis", "report", "--watch"]
    store = made_store(tmp_path / "store", "depth", CELLS[:1])
    (store / "cells" / cell_id(CELLS[0]) / "result.json").unlink()
    options = ["--from", str(store), "--out", str(tmp_path / "out"), "--no-cache"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[2]
        page = ""
        for _ in range(100):
            page = get(url)[0]
            if page:
                break
            time.sleep(0.2)
        process.send_signal(2)
        assert process.wait(30) == 0
    assert "Waiting for the first finished cell" in page


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = live.PageServer()
    port = server.url.rstrip("/").rpartition(":")[2]
    store = made_store(tmp_path / "store", "depth", CELLS[:1])
    assert main(["report", "--from", str(store), "--watch", "--port", port]) == 2
    assert port in capsys.readouterr().err
    server.close()
