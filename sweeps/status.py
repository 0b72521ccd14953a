"""``hiddenweights sweeps status``: the state of a sweep, from its store, once or continuously."""

import contextlib
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hiddenweights import own
from hiddenweights.cells.cell import STOPPED_EARLY
from hiddenweights.cells.store import Store, Unreachable, default_store
from hiddenweights.flat import from_dict
from hiddenweights.identity import Resolved, resolve
from hiddenweights.sweeps.arguments import Axes, Name, Sets, chosen, console_for_people
from hiddenweights.sweeps.progress import Curves, clock

EVERY = 2.0  # seconds between looks at a local store
EVERY_REMOTE = 15.0  # each look lists the bucket


class Standing:
    """The state of the `cells` of the sweep `name` in `store`, as of the last `look`."""

    def __init__(self, name: str, cells: Iterable[str], store: Store) -> None:
        self.name, self.store = name, store
        self._cells = [*cells]
        self._configs: dict[str, Resolved] = {}
        self._accuracies: dict[str, float] = {}
        self._seconds: list[float] = []
        self._problems: list[str] = []
        self.counts = Counter[str]()

    def look(self) -> None:
        """Read the states of all cells, and the results that are new."""
        states = self.store.states(self._cells)
        damaged: dict[str, str] = {}
        new = [cell for cell, state in states.items() if state == "finished" and cell not in self._configs]
        for cell, result in self.store.results(new, damaged):
            self._configs[cell] = resolve(from_dict(result["config"]))
            self._accuracies[cell] = result["summary"]["test_accuracy"]
            self._seconds.append(result["seconds"])
        self.counts = Counter("damaged" if cell in damaged else state for cell, state in states.items())
        self._problems = []
        for cell, state in states.items():
            failure = self.store.failure(cell) if state == "failed" else None
            if failure and failure["error"] == STOPPED_EARLY:
                self.counts.subtract(["failed"])
                self.counts.update(["stopped early"])
            elif failure:
                self._problems.append(f"failed: {cell}: epoch {failure['epoch']}: {failure['message']}")
        self._problems += [f"damaged: {cell}: {why}" for cell, why in damaged.items()]

    @property
    def complete(self) -> bool:
        """Whether every cell is finished, or was stopped early by a search."""
        return self.counts["finished"] + self.counts["stopped early"] == len(self._cells)

    def headline(self) -> str:
        """``depth: 240 cells: 12 finished, 2 running, 0 failed, 0 stopped, 226 missing``."""
        kinds = ["finished", "running", "failed", "stopped", "missing"]
        kinds += [kind for kind in ("stopped early", "damaged") if self.counts[kind]]
        states = ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds)
        return f"{self.name}: {len(self._cells)} cells: {states}"

    def left(self) -> str:
        """`` · about 0:48 left``, by the mean time of finished cells; empty if no cell runs."""
        if not self._seconds or not self.counts["running"]:
            return ""
        to_train = self.counts["running"] + self.counts["stopped"] + self.counts["missing"]
        return f" · about {clock(fmean(self._seconds) * to_train / self.counts['running'])} left"

    def show(self, console: Console) -> None:
        """Print all of it."""
        console.print(self.headline())
        if self._configs:
            console.print(Curves(self._configs).table(self._accuracies))
        for problem in self._problems:
            console.print(problem, markup=False)

    def picture(self, height: int, note: str) -> Group:
        """All of it on at most `height` lines."""
        parts: list[Text] = [Text(self.headline() + self.left(), style="bold")]
        parts += [Text(note, style="dim")] if note else []
        room = max(1, height - len(parts) - 2)
        if self._configs:
            curves = Curves(self._configs)
            best = curves.best(self._accuracies)
            if len(best) + 1 < room:
                return Group(
                    *parts, curves.table(self._accuracies), *map(Text, self._problems[: room - len(best) - 1])
                )
            parts += [Text(line) for line in best[:room]]
        return Group(*parts, *map(Text, self._problems[: max(0, height - len(parts) - 1)]))


def status(name: Name, set: Sets = (), axis: Axes = (), store: str | None = None, watch: bool = False) -> int:
    """Show the progress of a sweep, from its store. Exit status 0 if every cell is finished, else 1.

    A cell that a search has stopped early counts as finished.

    Args:
        name: The sweep. For your own sweep: FILE.py:FUNCTION or module:FUNCTION.
        set: As for `launch`. Without --set and --axis: the sweep as it was last launched.
        axis: As for `launch`.
        store: Folder or URL of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
        watch: Refresh until every cell is finished, or until q or Ctrl-C; the exit status is then 0.
    """
    console = console_for_people()
    results = Store(store or default_store())
    results.check()
    saved = None if set or axis else results.plan(own.slug(name))
    cells = saved["cells"] if saved else list(chosen(name, set, axis)[1])
    standing = Standing(own.slug(name), cells, results)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(standing, console)
        return 0
    standing.look()
    standing.show(console)
    if not results.present():
        console.print(f"the store {results.uri} does not exist: nothing was launched with it", markup=False)
    return 0 if standing.complete else 1


def _watch(standing: Standing, console: Console) -> None:
    """Show it until it is complete or q is pressed: in place on a terminal, else one line per change."""
    every = EVERY if standing.store.local else EVERY_REMOTE
    note = said = ""
    picture = Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext()
    with _quit_key() as quits, picture as live:
        while True:
            try:
                standing.look()
                note = ""
            except Unreachable as error:
                note = f"the store cannot be reached: {error}"
            if live:
                live.update(standing.picture(console.height, note or "q ends"), refresh=True)
            elif (now := note or standing.headline()) != said:
                console.print(now + ("" if note else standing.left()), markup=False)
                said = now
            if standing.complete or quits(every):
                return


@contextlib.contextmanager
def _quit_key() -> Iterator[Callable[[float], bool]]:
    """A function that waits for so many seconds, and returns True as soon as q is pressed."""
    keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
    if keys is None or os.tcgetpgrp(keys) != os.getpgrp():  # no terminal, or in its background

        def pause(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield pause
        return
    import termios
    import tty

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0] and os.read(keys, 64)[:1] in (b"q", b""):
                return True
        return False

    before = termios.tcgetattr(keys)
    tty.setcbreak(keys)
    try:
        yield pressed
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
