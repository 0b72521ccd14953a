"""The progress of a launch: a live table on a terminal, plain lines elsewhere."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hiddenweights.cells.kind import Kind, kind
from hiddenweights.cells.store import Json
from hiddenweights.config import Scalar
from hiddenweights.flat import field_of, flatten
from hiddenweights.identity import Resolved, short_name

MOST_COLUMNS = 12  # as many as fit next to the names of the curves
LINE_EVERY = 10.0  # seconds between plain lines


class Curves:
    """The place of each cell in the figure: its curve and its x."""

    def __init__(self, cells: Mapping[str, Resolved]) -> None:
        # Cells that differ only in the seed have the same place. It is stored, because finding it takes time.
        alike: dict[Resolved, list[str]] = defaultdict(list)
        for cell, config in cells.items():
            alike[_without_seed(config)].append(cell)
        groups = [cells[members[0]] for members in alike.values()]
        rows = [flatten(config) for config in groups]
        widths = {row["model.width"] for row in rows}
        self.x = "model.width" if len(widths) > 2 else "model.k"
        hidden = ("k=", "seed=", *(("width=",) if self.x == "model.width" else ()))
        words = [
            [word for word in short_name(config).split() if not word.startswith(hidden)] for config in groups
        ]
        name_what_differs(words, rows, self.x)
        shared = set.intersection(*map(set, words)) if len({*map(tuple, words)}) > 1 else set()
        found: dict[str, tuple[str, float | None]] = {}
        for members, name, row in zip(alike.values(), words, rows, strict=True):
            x = row[self.x]
            own = " ".join(word for word in name if word not in shared) or str(row["model.method"])
            found |= dict.fromkeys(members, (own, None if x is None else float(x)))
        self._places = {cell: found[cell] for cell in cells}  # in the order of the curves

    def place(self, cell: str) -> tuple[str, float | None]:
        """The name of the curve and the x of the cell; None if the method has no x."""
        return self._places[cell]

    def means(self, accuracies: Mapping[str, float]) -> dict[str, dict[float | None, float]]:
        """The mean accuracy per curve and x. The curves are in the order of the cells."""
        points: dict[str, dict[float | None, list[float]]] = {
            curve: defaultdict(list) for curve, _ in self._places.values()
        }
        for cell, accuracy in accuracies.items():
            curve, x = self.place(cell)
            points[curve][x].append(accuracy)
        return {curve: {x: fmean(values) for x, values in xs.items()} for curve, xs in points.items()}

    def table(self, accuracies: Mapping[str, float]) -> Table | Text:
        """Mean test accuracy in percent: a row per curve and a column per x. With many x only the best."""
        xs = sorted({x for _, x in self._places.values() if x is not None})
        if any(x is None for _, x in self._places.values()):
            xs.append(None)  # type: ignore[arg-type]
        if len(xs) > MOST_COLUMNS:
            return Text("\n".join(self.best(accuracies)))
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(f"test accuracy (%) by {self.x.rpartition('.')[2]}", no_wrap=True)
        for x in xs:
            table.add_column("-" if x is None else f"{x:g}", justify="right", min_width=4)
        for curve, points in self.means(accuracies).items():
            best = max(points.values(), default=0.0)
            table.add_row(
                curve,
                *(
                    Text(f"{points[x]:.1%}"[:-1], style="bold green" if points[x] == best else "")
                    if x in points
                    else Text("·", style="dim")
                    for x in xs
                ),
            )
        return table

    def best(self, accuracies: Mapping[str, float]) -> list[str]:
        """One line per curve: its best point."""
        lines = []
        for curve, points in self.means(accuracies).items():
            if points:
                x = max(points, key=lambda x: points[x])
                where = "" if x is None else f" at {self.x.rpartition('.')[2]} = {x:g}"
                lines.append(f"{curve}: {points[x]:.1%}{where}")
        return lines


def _without_seed(config: Resolved) -> Resolved:
    """The same config for each seed. A fine-tuned cell names the cell of its seed."""
    model = config.model if config.model.init_from is None else replace(config.model, init_from="0" * 16)
    return replace(config, seed=0, model=model)


def name_what_differs(words: list[list[str]], rows: list[dict[str, Scalar]], x: str) -> None:
    """Add the fields that differ, as ``lr=0.1``, to curves that would have two values at one x.

    A field that follows from another one, as the augmentation from the data set, is left out, and so are the
    parent of a fine-tuned cell and what has no effect on the result, as the folder of the data. `words` has
    the words of each curve's (or cell's) name, `rows` its config as flat fields. Changes `words`.
    """
    curves: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(words):
        curves[" ".join(name)].append(i)
    for members in curves.values():
        points: dict[Scalar, list[int]] = defaultdict(list)
        for i in members:
            points[rows[i][x]].append(i)
        differ = [
            field
            for field in rows[members[0]]
            if field not in (x, "seed", "model.init_from")
            and field_of(field).identity
            and any(len({rows[i][field] for i in point}) > 1 for point in points.values())
        ]
        kept: list[str] = []
        for field in sorted(differ, key=lambda field: (field != "data.name", field)):
            if not any(_follows(field, other, [rows[i] for i in members]) for other in kept):
                kept.append(field)
        for i in members:
            for field in kept:
                label = "" if field == "data.name" else f"{field.rpartition('.')[2]}="
                words[i].append(f"{label}{rows[i][field]}")


def _follows(field: str, other: str, rows: Sequence[Mapping[str, Scalar]]) -> bool:
    """Whether rows with the same value of `other` have the same value of `field`."""
    return len({(row[other], row[field]) for row in rows}) == len({row[other] for row in rows})


def outcome(result: Json) -> tuple[float, float]:
    """A finished cell's test accuracy and the seconds it took."""
    return result["summary"]["test_accuracy"], result["seconds"]


class _Run(NamedTuple):
    """A running cell: the fraction of its epochs that is done, and the seconds that all of them take."""

    done: float
    pace: float | None  # None before its first epoch


class Progress:
    """Counts cells and shows the progress. Use it as a context manager around the work."""

    def __init__(self, name: str, cells: Mapping[str, Resolved], curves: Curves, console: Console) -> None:
        self.name, self._cells, self._curves, self._console = name, cells, curves, console
        self.accuracies: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.early: set[str] = set()
        self._kinds = {cell: kind(config) for cell, config in cells.items()}
        self._seconds: dict[Kind, list[float]] = defaultdict(list)
        self._running: dict[str, _Run] = {}
        self._note = ""
        self._warned: set[str] = set()
        self._began = self._printed = time.monotonic()
        self._slots = 1
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    # --- what happened -------------------------------------------------------------------------------

    def known(self, cell: str, accuracy: float, seconds: float) -> None:
        """The cell was already finished."""
        self.accuracies[cell] = accuracy
        self._seconds[self._kinds[cell]].append(seconds)

    def running(self, cell: str, epoch: int, seconds: float | None = None) -> None:
        """The cell has finished `epoch` epochs, the last of them in `seconds`.

        A resumed cell reports its earlier epochs again, so the time between reports says nothing.
        """
        epochs = self._cells[cell].train.epochs
        self._running[cell] = _Run(epoch / epochs, None if seconds is None else seconds * epochs)
        self._slots = max(self._slots, len(self._running))
        self._line()

    def finished(self, cell: str, accuracy: float, seconds: float) -> None:
        """The cell is in the store."""
        self._running.pop(cell, None)
        self.failures.pop(cell, None)
        self.known(cell, accuracy, seconds)
        self._line()

    def failed(self, cell: str, message: str) -> None:
        """The cell failed."""
        self._running.pop(cell, None)
        self.failures[cell] = message
        self._console.print(f"failed: {short_name(self._cells[cell])} ({cell}): {message}")

    def interrupted(self, cell: str) -> None:
        """The worker of the cell died. Another one will resume the cell."""
        self._running.pop(cell, None)
        self._console.print(f"a worker died: {short_name(self._cells[cell])} ({cell}) resumes in another")

    def stopped_early(self, cell: str) -> None:
        """A search stopped the cell."""
        self._running.pop(cell, None)
        self.early.add(cell)

    def left(self, cell: str) -> None:
        """No process of this launch trains the cell any more."""
        self._running.pop(cell, None)

    def warn(self, text: str) -> None:
        """Print a line, once."""
        if text not in self._warned:
            self._warned.add(text)
            self._console.print(text, markup=False)

    def lost(self, why: str) -> None:
        """Ray was lost, and with it all workers."""
        self._running.clear()
        self.say(why)

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """The reason for waiting, if any."""
        if text and text != self._note and not self._live:
            self._console.print(text)
        self._note = text

    # --- what to show --------------------------------------------------------------------------------

    def eta(self) -> float | None:
        """Estimated seconds to the end. None if nothing is known yet.

        A cell takes as long as finished cells of its kind, else as long as running ones at their pace, else
        as long as all cells on average.
        """
        paces: dict[Kind, list[float]] = defaultdict(list)
        for cell, run in self._running.items():
            if run.pace:
                paces[self._kinds[cell]].append(run.pace)
        means = {what: fmean(taken) for what, taken in (paces | self._seconds).items()}
        if not means:
            return None
        typical = fmean(means.values())
        left = [
            means.get(what, typical) * (1 - (self._running[cell].done if cell in self._running else 0.0))
            for cell, what in self._kinds.items()
            if cell not in self.accuracies and cell not in self.failures and cell not in self.early
        ]
        return max(sum(left) / self._slots, max(left, default=0.0))  # a cell takes as long beside others

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def counts(self) -> str:
        """``45/72 cells · 2 running · 0 failed · 0:48 left``."""
        words = [
            f"{len(self.accuracies)}/{len(self._cells)} cells",
            f"{len(self._running)} running",
            f"{len(self.failures)} failed",
        ]
        words += [f"{len(self.early)} stopped early"] if self.early else []
        eta = self.eta()
        if eta:
            words.append(f"{clock(eta)} left")
        return " · ".join(words)

    def _picture(self) -> Group:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self.name, style="bold"),
            ProgressBar(total=max(1, len(self._cells)), completed=len(self.accuracies), width=30),
            Text(self.counts(), style="red" if self.failures else ""),
        )
        parts: list[Table | Text] = [head]
        if self._note:
            parts.append(Text(self._note, style="dim"))
        rows = len({curve for curve, _ in map(self._curves.place, self._cells)})
        if rows + 4 < self._console.height:  # a table that is taller than the screen flickers
            parts.append(self._curves.table(self.accuracies))
        else:
            room = max(1, self._console.height - 4)
            parts += [Text(line) for line in self._curves.best(self.accuracies)[:room]]
        return Group(*parts)

    def _line(self) -> None:
        now = time.monotonic()
        if self._live or now - self._printed < LINE_EVERY:
            return
        self._printed = now
        top = ""
        if self.accuracies:
            means = self._curves.means(self.accuracies)
            top = max((max(points.values()), curve) for curve, points in means.items() if points)[1]
            top = next(line for line in self._curves.best(self.accuracies) if line.startswith(f"{top}:"))
        self._console.print(f"{self.name}: {self.counts()}" + (f" · best {top}" if top else ""))


def clock(seconds: float) -> str:
    """``0:48``, ``12:03``, ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
