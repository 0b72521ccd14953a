"""The page of a launch: `analysis report --watch` in a separate process, while the launch runs.

It is a separate process because drawing takes memory and time, and because an error in it must not stop the
launch.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec

from rich.console import Console

from hiddenweights.cli import PARENT

NEEDED = ("matplotlib", "pandas", "pyarrow", "vl_convert")
LAST_LOOK = 60.0  # time limit in seconds for the last page, with all results


def check_installed() -> None:
    """Raise `ModuleNotFoundError` if a package that the page needs is missing."""
    for package in NEEDED:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"--page needs {package}", name=package)


@contextlib.contextmanager
def served(store: str, console: Console) -> Iterator[None]:
    """Inside the block, serve the report on the store with this URI. Prints the address of the page.

    The page is written once more at the end of the block. If its process fails, this prints a line.
    """
    command = [sys.executable, "-m", "hiddenweights", "analysis", "report", "--watch", "--from", store]
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C must reach only the launch, which then ends the page
        )
    except OSError as error:
        console.print(f"the page could not be started: {error.strerror}")
        yield
        return
    begun, ending = threading.Event(), threading.Event()
    teller = threading.Thread(target=_tell, args=(process, begun, ending, console), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ending.set()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # Ctrl-C: no last page
            begun.wait(LAST_LOOK)  # until then, the signal would kill it without a last page
            process.terminate()
            process.wait(LAST_LOOK)
        process.kill()
        process.wait()
        teller.join(1.0)


def _tell(
    process: "subprocess.Popen[str]", begun: threading.Event, ending: threading.Event, console: Console
) -> None:
    """Print the first line of the process (the address), and its last line if it fails."""
    assert process.stdout
    line = ""
    with process.stdout:
        for number, line in enumerate(process.stdout):
            if number == 0 and line.startswith("the page:"):
                console.print(line.rstrip(), markup=False)
                begun.set()
    begun.set()
    if not ending.is_set():
        console.print(f"the page has ended: {line.strip() or 'no reason given'}", markup=False)
