"""Command lines made from typed functions. Help comes from docstrings; bad input gives one line and status 2.

A command has a name of one or two words (``train``, ``sweeps launch``). Only the module of the command that
is called is imported, so the overview appears immediately.
"""

import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Annotated, Any, NoReturn, Union

from hiddenweights.errors import StoreAway, Unreachable, UserError, choices_error, escaped, nearest
from hiddenweights.garbage import collect_rarely

Command = Callable[..., int | None]

# Environment variable: the id of the process with which `analysis report --watch` ends.
PARENT = "HIDDENWEIGHTS_PARENT"
GIVEN = "given"  # a parameter of this name gets the names of the options that are on the command line

# The optional packages, each with the extra of this package that installs it.
EXTRAS = {
    "psutil": "sweeps",
    "ray": "sweeps",
    "wandb": "sweeps",
    "matplotlib": "analysis",
    "pandas": "analysis",
    "pyarrow": "analysis",
    "vl_convert": "analysis",
    "wandb_workspaces": "report",
}


@dataclass(frozen=True)
class Lazy:
    """A command whose module is imported when the command is called."""

    home: str
    """module:function"""
    about: str
    """The first line of the function's docstring."""

    def load(self) -> Command:
        """Import the function. Raises ModuleNotFoundError if the package of an extra is missing."""
        module, _, name = self.home.partition(":")
        command: Command = getattr(importlib.import_module(module), name)
        return command


Commands = Mapping[str, Command | Lazy]


def run(commands: Commands, prog: str, args: Sequence[str] | None = None) -> int:
    """Call the command that `args` (default: the process's own) name and return its exit status.

    A command returns its status, or None for 0. SIGINT, SIGTERM and SIGHUP (the terminal is gone) raise
    KeyboardInterrupt in it, which ends with status 130; a command may raise it again with a line for people.
    A `UserError` of the parser or of the command becomes one line on stderr and status 2, and so does a
    missing package of an extra; a store that cannot be reached becomes one and status 1.
    """
    collect_rarely()
    try:
        return _run(commands, prog, sys.argv[1:] if args is None else args)
    except BrokenPipeError:  # e.g. `head` closed the pipe; then the flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(commands: Commands, prog: str, args: Sequence[str]) -> int:
    try:
        with _stoppable():
            status = parse(commands, prog, args)() or 0
            sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be gone
            if str(stop):
                # Not through rich, which prints nothing more if it was interrupted while it printed.
                sys.stdout.write(f"{stop}\n")
                sys.stdout.flush()
            else:
                sys.stderr.write("stopped\n")
        return 130
    except UserError as error:
        sys.stderr.write(f"error: {escaped(str(error))}\n")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sys.stderr.write(f"error: this needs {package}: pip install 'hiddenweights[{EXTRAS[package]}]'\n")
    except (StoreAway, Unreachable) as error:
        text = escaped(str(error))
        named = text if isinstance(error, StoreAway) else f"the store: {text}"
        sys.stderr.write(f"error: {named}; run the same command again when it is back\n")
        return 1
    return 2


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside the block SIGTERM, and SIGHUP unless nohup ignores it, raise KeyboardInterrupt."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # If the signal came while a string was executed (as dataclasses do), Python has made a note of it and
        # would end by SIGINT, whatever the exit status. The next string makes it forget.
        exec("")


def parse(commands: Commands, prog: str, args: Sequence[str]) -> Callable[[], int | None]:
    """Return the call that `args` name, without calling it. Raises `UserError` for bad arguments."""
    if args[:1] == ["--tyro-print-completion"]:
        return functools.partial(_print_completion, commands, prog, args)
    for length in (2, 1):
        if (name := " ".join(args[:length])) in commands:
            command = commands[name]
            function = command.load() if isinstance(command, Lazy) else command
            return _parse_options(function, f"{prog} {name}", args[length:])
    words = [word for word in args if word not in ("-h", "--help")]
    known = {name: command for name, command in commands.items() if name.split()[: len(words)] == words}
    if not known:
        raise choices_error("command", " ".join(words[:2]), commands)
    if words == args and words:  # a group was named, and no help was asked for
        raise UserError(f"{prog} {' '.join(words)}: name one of {', '.join(known)}")
    return functools.partial(_print_overview, known, prog)


def _print_overview(commands: Commands, prog: str) -> None:
    """Print the commands, one per line."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {_about(command)}" for name, command in commands.items()]
    foot = f"`{prog} COMMAND --help` shows a command's options."
    sys.stdout.write("\n".join([f"usage: {prog} COMMAND [OPTIONS]", "", *lines, "", foot, ""]))


def _about(command: Command | Lazy) -> str:
    if isinstance(command, Lazy):
        return command.about
    return (inspect.getdoc(command) or "").partition("\n")[0]


def _parse_options(function: Command, prog: str, args: Sequence[str]) -> Callable[[], int | None]:
    import tyro  # the import takes 0.1 s, and the overview does not need it

    _adapt_help()
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], int | None] = tyro.cli(
                _deferred(function, args), prog=prog, args=args, config=_style(tyro)
            )
    except SystemExit as end:
        if not end.code:  # help was asked for, and printed
            raise
        gist = _one_line(complaint.getvalue())
        raise UserError(gist + _hint(gist, _options(function, prog))) from None
    return call


def _options(function: Command, prog: str) -> list[str]:
    """The names of the options of a command, without the dashes, from its help."""
    import tyro

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(_deferred(function, ()), prog=prog, args=["--help"], config=_style(tyro))
    return sorted(set(re.findall(r"(?m)^[│|\s]*--([a-z][\w.-]*)", shown.getvalue())))


def _hint(gist: str, options: Sequence[str]) -> str:
    """The option that may be meant, if the parser's `gist` is that it knows no such option."""
    unknown = re.match(r"Unrecognized.*?--([\w.-]+)", gist)
    near = nearest(unknown[1], options) if unknown else []
    return f" (did you mean {' or '.join(f'--{name}' for name in near)}?)" if near else ""


@functools.cache
def _adapt_help() -> None:
    """Change what tyro prints as help. These functions are private, and only the help depends on them."""
    with contextlib.suppress(ImportError, AttributeError):
        import tyro._arguments as arguments
        import tyro._strings as strings

        # tyro would keep the line breaks of a field's docstring, because its lines are indented.
        strings.remove_single_line_breaks = lambda helptext: " ".join(helptext.split())
        helptext = arguments.generate_argument_helptext

        def without_none(arg: Any, *rest: Any, **more: Any) -> Any:
            """Leave out "(default: None)": the text says what holds if nothing is given."""
            if arg.field.default is None and arg.field.argconf.help_behavior_hint is None:
                arg.field.argconf = replace(arg.field.argconf, help_behavior_hint="")
            return helptext(arg, *rest, **more)

        arguments.generate_argument_helptext = without_none


def _style(tyro: Any) -> tuple[Any, ...]:
    """Show no `{None}|` before a type, and no `--no-X` for a flag that is off by default."""
    return (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)


def _deferred(command: Command, words: Sequence[str]) -> Callable[..., Callable[[], int | None]]:
    """`command`, bound to its options instead of called. Its parameter `given`, if it has one, is filled."""
    given = {GIVEN: _given(words)} if GIVEN in inspect.signature(command).parameters else {}

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int | None]:
        return functools.partial(command, *args, **kwargs | given)

    return bind


def _given(words: Sequence[str]) -> frozenset[str]:
    """The names of the options among `words`, spelled like fields: ``model.init_from``."""
    options = (word.partition("=")[0] for word in words if word.startswith("--"))
    return frozenset(option.removeprefix("--").replace("-", "_") for option in options)


def _print_completion(commands: Commands, prog: str, args: Sequence[str]) -> None:
    """Print the shell completion that tyro generates from all commands together."""
    import tyro

    groups: dict[str, dict[str, Any]] = {}
    for name, command in commands.items():
        group, _, leaf = name.rpartition(" ")
        groups.setdefault(group, {})[leaf] = command.load() if isinstance(command, Lazy) else command
    top = groups.pop("", {})
    tyro.cli(
        _group(top | {name: _group(inner) for name, inner in groups.items()}),
        prog=prog,
        args=args,
        config=_style(tyro),
    )


def _group(commands: Mapping[str, Command]) -> Command:
    """A function that takes one of `commands` as its subcommand."""
    import tyro

    choices = [
        Annotated[Any, tyro.conf.subcommand(name=name, constructor=command)]
        for name, command in commands.items()
    ]

    def chosen(command: Any) -> Any:
        return command

    chosen.__annotations__["command"] = Annotated[Union[tuple(choices)], tyro.conf.arg(name="")]  # noqa: UP007
    return chosen


def _one_line(box: str) -> str:
    """The first paragraph of the parser's boxed message.

    Our own errors name the field, so the parser's name for a group of fields (`config.model`) is left out.
    The lines of the box are dashes if the terminal has no Unicode.
    """
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    lines = [line if line.strip("-") else "" for line in lines]
    while lines and not lines[0]:
        lines.pop(0)
    end = lines.index("") if "" in lines else len(lines)
    return re.sub(r"^Error parsing (__tyro\S+: |\w+(\.\w+)*: (?=\w+\.\w+: ))?", "", " ".join(lines[:end]))
