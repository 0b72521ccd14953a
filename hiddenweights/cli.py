"""Command lines from typed functions: help from docstrings, bad input in one line with exit status 2."""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from hiddenweights.errors import UserError

Command = Callable[..., int | None]


def run(commands: Mapping[str, Command], prog: str, args: Sequence[str] | None = None) -> int:
    """Call the command that `args` (default: the process's own) name and return its exit status.

    A command returns its status, None for 0. A `UserError` of the parser or of the command becomes one
    line on stderr and status 2.
    """
    try:
        status = parse(commands, prog, args)() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, say `head`, has seen enough; nor can the rest be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def parse(
    commands: Mapping[str, Command], prog: str, args: Sequence[str] | None = None
) -> Callable[[], int | None]:
    """The call that `args` name, not yet made. Raises `UserError` for arguments that do not fit."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], int | None] = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog=f"python -m {prog}",
                args=sys.argv[1:] if args is None else args,
            )
    except SystemExit as end:
        if not end.code:  # help was asked for, and printed
            raise
        raise UserError(_one_line(complaint.getvalue())) from None
    return call


def _deferred(command: Command) -> Callable[..., Callable[[], int | None]]:
    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int | None]:
        return functools.partial(command, *args, **kwargs)

    return bind


def _one_line(box: str) -> str:
    """The gist of the parser's boxed message: its first paragraph, and what it proposes instead."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    end = lines.index("") if "" in lines else len(lines)
    gist = re.sub(r"^Error parsing (__tyro\S+: )?", "", " ".join(lines[:end]))
    if gist.startswith("Unrecognized"):
        for line in lines[end:]:
            if line.startswith("--"):
                return f"{gist} (did you mean {line.split()[0]}?)"
            if line.startswith("Available subcommands: "):
                return f"{gist}; choices: {line.removeprefix('Available subcommands: ')}"
    return gist
