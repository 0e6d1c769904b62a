"""``mserve``: the commands, and the one place where an error becomes an exit code.

    exit 0    done                       exit 2    refused: a bad flag, path, request or machine
    exit 1    our fault                  exit 3    below a floor that `mserve eval` was given
    exit 130  interrupted                exit 4    questions of `mserve eval` got no answer

Knows how errors look in a terminal. Does not know what any command does.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import mserve
from mserve.cli.chat import chat
from mserve.cli.doctor import doctor
from mserve.cli.evaluate import evaluate
from mserve.cli.generate import generate
from mserve.cli.quantize import quantize
from mserve.cli.serve import serve
from mserve.cli.toy import toy
from mserve.core import MserveError, OverloadedError, RequestError, SetupError

REFUSED = 2
FAILED = 1
INTERRUPTED = 130

app = typer.Typer(
    name="mserve",
    help="Serve MiniMax-M2 and MiniMax-M3 checkpoints, and talk to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, chat, generate, toy, quantize, doctor):
    app.command(no_args_is_help=False)(command)
app.command(name="eval", no_args_is_help=False)(evaluate)  # no function may have its name


@dataclasses.dataclass
class Shown:
    """What an error shows, as the flags before the command asked for it."""

    traceback: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mserve {mserve.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MSERVE_DEBUG", help="Show tracebacks of errors.")
    ] = False,
) -> None:
    context.obj.traceback = debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit. ``arguments`` default to those of the process."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors go to stderr in a few lines."""
    shown = Shown()
    try:
        code = app(
            with_dashes(sys.argv[1:] if arguments is None else arguments),
            prog_name="mserve",
            standalone_mode=False,
            obj=shown,
        )
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (``| head``) has left. Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if shown.traceback:
            raise
        code, lines = explain(error)
        print("\n".join(lines), file=sys.stderr)  # noqa: T201
        return code


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Option names with dashes: published recipes write ``--enable_expert_parallel`` too."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words.append(name.replace("_", "-") + equals + value if word.startswith("--") else word)
    return words


def explain(error: Exception) -> tuple[int, list[str]]:
    """Exit code and lines for one error: what is wrong, then what to change."""
    if isinstance(error, typer.TyperException):
        where = getattr(getattr(error, "ctx", None), "command_path", "mserve")
        return REFUSED, [f"error: {error.format_message()}", f"hint: {where} --help"]
    if isinstance(error, SetupError):
        hint = [f"hint: {error.hint}"] if error.hint else []
        return REFUSED, [f"error: {error.message}", *hint]
    if isinstance(error, RequestError | OverloadedError):
        return REFUSED, [f"error: {error.message}"]
    if isinstance(error, MserveError):
        return FAILED, [f"error: {error.message}"]
    return FAILED, [
        f"error: internal error: {type(error).__name__}: {first_line(error)}",
        "hint: run `mserve --debug ...` for the traceback, and report it",
    ]


def first_line(error: Exception) -> str:
    """The first line of an error's text, at most 200 characters of it."""
    return (str(error).splitlines() or ["no message"])[0][:200]


if __name__ == "__main__":
    main()
