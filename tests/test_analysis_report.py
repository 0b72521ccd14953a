"""The report: complete, self-contained, and usable in a browser."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from analysis_stores import config, grid, made_store

from hiddenweights.analysis import claims
from hiddenweights.analysis.commands import main
from hiddenweights.config import cell_id

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CELLS = [*grid(archs=("conv2",), ks=(0.1, 0.5, 0.9), seeds=(0, 1)), config(model__k=0.37)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    store = made_store(root / "store", "depth", CELLS)
    (store / "cells" / cell_id(CELLS[0]) / "result.json").unlink()
    assert main(["report", "--no-cache", "--from", str(store), "--out", str(root / "out")]) == 0
    return root / "out"


class Page(html.parser.HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_everything_and_needs_nothing(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.tags.count("svg") == 1  # one figure can be made of this table
    assert all(link.startswith("#") for link in page.links)
    for claim in claims.CLAIMS:
        assert claim.says in page.words
        assert claim.rule in page.words
    assert all(cell_id(cell) in page.words for cell in CELLS)
    assert "not trained yet" in page.words
    assert "torch 2.15.0" in page.words
    assert "launch width" in page.words


def test_markdown_says_the_same_and_its_links_lead_somewhere(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / name).is_file(), name
    assert all(claim.says in text for claim in claims.CLAIMS)
    assert "not trained yet" in text


def test_the_same_table_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    store = folder.parent / "store"
    main(["report", "--no-cache", "--from", str(store), "--out", str(tmp_path)])
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_text_from_runs_cannot_become_markup(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", "depth", CELLS[:3])
    path = store / "cells" / cell_id(CELLS[0]) / "result.json"
    found = json.loads(path.read_text())
    found["name"] = found["device"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(found))
    main(["report", "--no-cache", "--from", str(store), "--out", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.tags.count("script") == 1
    assert "alert(1)" in page.words


PROBE = """
<script>
const result = {};
const visible = () => [...document.querySelectorAll("#cell-table tbody tr")].filter(row => !row.hidden);
const heads = [...document.querySelectorAll("#cell-table th")];
const column = name => heads.findIndex(head => head.textContent === name);
const values = name => visible().map(row => row.cells[column(name)].textContent);
const click = name => document.querySelectorAll("#cell-table th button")[column(name)].click();
result.rows = visible().length;
click("test accuracy"); result.up = values("test accuracy").map(Number);
click("test accuracy"); result.down = values("test accuracy").map(Number);
search.value = "kaiming K=0.5"; search.dispatchEvent(new Event("input"));
result.found = values("name"); result.count = document.getElementById("count").textContent;
result.wide = document.documentElement.scrollWidth; result.window = window.innerWidth;
document.body.innerHTML = "<pre id=result>" + JSON.stringify(result) + "</pre>";
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [500, 1300])
def test_sorting_and_searching_in_a_browser(folder: Path, tmp_path: Path, width: int) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text((folder / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    out = chromium(tmp_path, f"--window-size={width},900", "--dump-dom", probe.as_uri())
    result = json.loads(out[out.index("{", out.index("<pre")) : out.index("</pre>")].replace("&amp;", "&"))
    assert result["rows"] == len(CELLS) - 1
    assert result["up"] == sorted(result["up"])
    assert result["down"] == sorted(result["up"], reverse=True)
    assert len(set(result["up"])) > 3
    assert result["found"]
    assert all("kaiming" in name and "k=0.5" in name for name in result["found"])
    assert result["count"].startswith(f"{len(result['found'])} of")
    assert result["wide"] <= result["window"]  # wide tables and figures scroll inside the page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_it_prints(folder: Path, tmp_path: Path) -> None:
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'print.pdf'}", (folder / "report.html").as_uri())
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")


def chromium(tmp_path: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([*command, profile, *arguments], check=True, capture_output=True, timeout=120)
    return done.stdout.decode()
