"""The report: complete, self-contained, and usable in a browser."""

import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from analysis_stores import config, grid, made_store

from hiddenweights import cli
from hiddenweights.analysis import claims, masks, report
from hiddenweights.analysis.commands import main
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.page import write
from hiddenweights.analysis.page.reproduce import command
from hiddenweights.commands.train import train
from hiddenweights.flat import flatten
from hiddenweights.identity import cell_id, resolve

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
    assert page.tags.count("svg") == 2  # the claims and the one figure of this table, without scripts too
    assert page.tags.count("img") >= 2  # the training curves of its panels, too
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    for claim in claims.CLAIMS:
        assert claim.says in page.words
        assert claim.rule in page.words
    assert all(cell_id(cell) in page.words for cell in CELLS)
    assert "not trained yet" in page.words
    assert page.words.count("no tickets of these cells") == 2  # neither overlaps nor first layers
    assert "torch 2.15.0" in page.words
    assert re.search("sweeps launch NAME: .*width", page.words)


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
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    drawn = report.collect(fetch(str(store)), "made")
    (drawing,) = drawn.drawings
    rows = [
        {"panel": "Conv2", "curve": "signed constant", "x": 50.0, "layer": layer, "seeds": 2, "both": 50.0}
        for layer in (masks.ALL, '"><script>alert(1)</script>')
    ]
    overlaps = pd.DataFrame(rows).assign(chance=50.0, low=49.0, high=51.0)
    assert "<script>alert(1)" not in write.as_html(
        replace(drawn, drawings=[replace(drawing, overlaps=overlaps)])
    )


def test_each_cell_comes_with_the_command_that_trains_it_again() -> None:
    cells = [
        config(),
        config(model__method="dense", optim__optimizer="adam", seed=3),
        config(model__method="sampled", data__subset=500, seeds__data=7),
        config(model__scaled=True, model__k=0.3, data__name="digits", train__epochs=3),
    ]
    for cell in cells:
        row = pd.Series(flatten(resolve(cell)) | {"data.subset": cell.data.subset}, dtype=object)
        words = shlex.split(command(row))
        call = cli.parse({"train": train}, "hiddenweights", words[1:])
        assert cell_id(call.args[0] if call.args else call.keywords["config"]) == cell_id(cell)  # type: ignore[attr-defined]


# Acts as a reader would, and leaves what it saw as the page's only content.
PROBE = """
<script>
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const visible = () => [...document.querySelectorAll("#cell-table tbody tr")].filter(row => !row.hidden);
const heads = [...document.querySelectorAll("#cell-table th")];
const column = name => heads.findIndex(head => head.textContent === name);
const values = name => visible().map(row => row.cells[column(name)].textContent);
const click = name => document.querySelectorAll("#cell-table th button")[column(name)].click();
const chart = document.querySelector("#depth .chart");
const points = () => chart.querySelectorAll(".mark-symbol path").length;
async function probe() {
  const result = {};
  result.rows = visible().length;
  click("test accuracy"); result.up = values("test accuracy").map(Number);
  click("test accuracy"); result.down = values("test accuracy").map(Number);
  search.value = "kaiming K=0.5"; search.dispatchEvent(new Event("input"));
  result.found = values("name"); result.count = document.getElementById("count").textContent;
  result.wide = document.documentElement.scrollWidth; result.window = window.innerWidth;
  document.body.style.width = "400px";
  const parts = [...document.querySelectorAll("main > *, header > *")];
  result.narrow = Math.max(...parts.map(part => part.getBoundingClientRect().width));
  document.querySelectorAll(".chart").forEach(part => part.scrollIntoView()); chart.scrollIntoView();
  for (let i = 0; i < 200 && !points(); i++) await wait(100);
  result.static = getComputedStyle(document.querySelector("#depth .static")).display;
  result.points = points();
  const point = chart.querySelector(".mark-symbol path"), box = point.getBoundingClientRect();
  const place = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
  for (const kind of ["pointerover", "pointermove"]) point.dispatchEvent(new PointerEvent(kind, place));
  for (const kind of ["mouseover", "mousemove"]) point.dispatchEvent(new MouseEvent(kind, place));
  await wait(100);
  result.tip = document.getElementById("vg-tooltip-element")?.textContent || "";
  const key = name => chart.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
  chart.focus(); key("Home"); result.first = chart.nextElementSibling.textContent;
  key("ArrowRight"); result.second = chart.nextElementSibling.textContent;
  result.chosen = chart.querySelectorAll(".chosen").length;
  chart.blur(); result.left = chart.querySelectorAll(".chosen").length;
  const entry = document.querySelector("#depth .legend button");
  result.curve = entry.dataset.curve; entry.focus(); entry.click(); await wait(300);
  result.fewer = points(); result.pressed = entry.getAttribute("aria-pressed");
  document.body.innerHTML = "<pre id=result>" + JSON.stringify(result) + "</pre>";
}
probe();
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [500, 1300])
def test_the_page_answers_in_a_browser(folder: Path, tmp_path: Path, width: int) -> None:
    probe = tmp_path / "probe.html"
    before, end, after = (folder / "report.html").read_text().rpartition("</body>")
    probe.write_text(before + PROBE + end + after)
    window = (f"--window-size={width},900", "--virtual-time-budget=40000")
    out = chromium(tmp_path, *window, "--dump-dom", probe.as_uri())
    found = out[out.index('<pre id="result">') + 17 : out.index("</pre>", out.index('<pre id="result">'))]
    result = json.loads(html.unescape(found))
    assert result["rows"] == len(CELLS) - 1
    assert result["up"] == sorted(result["up"])
    assert result["down"] == sorted(result["up"], reverse=True)
    assert len(set(result["up"])) > 3
    assert result["found"]
    assert all("kaiming" in name and "k=0.5" in name for name in result["found"])
    assert result["count"].startswith(f"{len(result['found'])} of")
    assert result["wide"] <= result["window"]  # wide tables and figures scroll inside the page
    assert result["narrow"] <= 400
    assert result["static"] == "none"
    assert result["points"] > result["fewer"] > 0  # a curve was hidden
    assert result["pressed"] == "false"
    assert "seeds" in result["tip"]
    assert "95% interval" in result["tip"]
    assert "95% interval" in result["first"]
    assert result["first"] != result["second"]
    assert (result["chosen"], result["left"]) == (1, 0)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_it_prints(folder: Path, tmp_path: Path) -> None:
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'print.pdf'}", (folder / "report.html").as_uri())
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")


def chromium(tmp_path: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([*command, profile, *arguments], check=True, capture_output=True, timeout=120)
    return done.stdout.decode()
