"""``mserve eval``: suites of questions and lm-eval's tasks, against a server or a checkpoint.

Knows flags, the table and the exit code. Does not know what is asked or when an answer is right
(``mserve.evaluate``), or how a server is started (``chat_server``).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mserve.core import MserveError, SetupError

if TYPE_CHECKING:
    from mserve.cli.chat_server import Server
    from mserve.evaluate import Case, Floor, FloorResult, Outcome, Record, Score

BELOW_A_FLOOR = 3
UNANSWERED = 4


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="URL of a server, or a checkpoint folder to serve meanwhile; `demo` is a small "
            "model that comes with mserve."
        ),
    ],
    serve_flags: Annotated[
        list[str] | None, typer.Argument(help="After --: flags of `mserve serve` for a checkpoint.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            "-s",
            help="Name of a suite, or a .jsonl file; may be repeated. Default: all of the demo's, "
            "unless there is a --task.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task of lm-eval, which must be installed; may be repeated."),
    ] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            help="A floor such as needle=0.95 or needle/12k=0.95; below it the exit code is 3, "
            "or 4 if questions got no answer. May be repeated.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many cases of each part or task.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions asked at a time.")] = 8,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a record as JSON.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Served model name. Default: the server's first.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MSERVE_API_KEY", help="Key of the server.")
    ] = None,
) -> int:
    """Ask a model what it should know, and count."""
    from rich.console import Console

    from mserve.cli.chat import first_model, server_of
    from mserve.cli.chat_client import ChatClient
    from mserve.cli.generate import check_writable
    from mserve.evaluate import (
        check_floors,
        check_tasks,
        load_suites,
        parse_floor,
        suite_names,
    )

    if task:
        check_tasks(task)
    suites = load_suites(suite or ([] if task else suite_names()), limit)
    floors = [parse_floor(text) for text in minimum or ()]
    _check_names(floors, suites, bool(task))
    if output is not None:
        check_writable(output)
    settings = {"temperature": temperature}
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(Console(stderr=True).status("waiting for the server"))

        def report(stage: str, fraction: float) -> None:
            status.update(f"loading: {stage} {fraction:.0%}")

        server = server_of(target, serve_flags or [], report, stack)
        client = stack.enter_context(ChatClient(server.url, api_key=api_key))
        client.wait_until_ready(report)
        name = model or first_model(client)
        status.stop()
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        outcomes: list[Outcome] = []
        tasks: dict[str, Any] = {}
        stopped: str | None = "interrupted"
        try:
            outcomes = _ask(
                server.url, api_key, suites, name, settings, concurrency, outcomes.append
            )
            tasks = _run_tasks(server.url, api_key, task or [], name, settings, limit, concurrency)
            stopped = None
        except MserveError as error:
            stopped = error.message
            server.check()
            raise
        finally:  # what an hour of asking has found is kept, whatever ends it
            record = _recorded(
                outcomes,
                tasks,
                floors,
                target=target,
                model=name,
                started=started.isoformat(timespec="seconds"),
                duration_s=round(time.monotonic() - clock, 1),
                settings=settings,
                stopped=stopped,
            )
            if record.scores:
                _keep(record, output)
        if record.unanswered:
            num_unanswered, first = len(record.unanswered), record.unanswered[0]
            typer.echo(f"{num_unanswered} got no answer: {first.reason}", err=True)
            _tell_end_of(server)
    code = print_floors(check_floors(record.scores, floors))
    return UNANSWERED if record.unanswered else code


def _tell_end_of(server: Server) -> None:
    """Print the last lines of a server of ours that has ended."""
    try:
        server.check()
    except SetupError as error:
        typer.echo(error.message, err=True)


def _check_names(
    floors: Sequence[Floor], suites: Mapping[str, Mapping[int, Case]], has_tasks: bool
) -> None:
    """Raise ``SetupError`` now, not after the work, for a floor under what is not asked. What a
    task measures, and under which names, is seen when it has run."""
    from mserve.evaluate import score_names

    names = score_names(
        {suite: [case.part for case in cases.values()] for suite, cases in suites.items()}
    )
    for floor in floors:
        is_of_task = has_tasks and floor.name.partition("/")[0] not in suites
        if floor.name not in names and not is_of_task:
            asked = ", ".join(names)
            raise SetupError(f"--min {floor.name}: that is not asked", hint=f"asked are {asked}")


def _ask(
    url: str,
    api_key: str | None,
    suites: Mapping[str, Mapping[int, Case]],
    model: str,
    settings: dict[str, Any],
    concurrency: int,
    keep: Callable[[Outcome], None],
) -> list[Outcome]:
    """In the order of the cases. ``keep`` gets each as soon as it is known."""
    from mserve.evaluate import AskClient, run_cases

    async def ask(report: Callable[[Outcome], None]) -> list[Outcome]:
        async with AskClient(url, api_key=api_key) as client:
            return await run_cases(
                client,
                suites,
                model=model,
                settings=settings,
                concurrency=concurrency,
                report=report,
            )

    with _progress(sum(map(len, suites.values()))) as show:

        def report(outcome: Outcome) -> None:
            keep(outcome)
            show(outcome)

        return asyncio.run(ask(report))


@contextlib.contextmanager
def _progress(num_cases: int) -> Iterator[Callable[[Outcome], None]]:
    """A bar on stderr, if that is a terminal; yields what it is told by."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, num_wrong = bar.add_task("asking", total=num_cases), 0

        def advance(outcome: Outcome) -> None:
            nonlocal num_wrong
            num_wrong += outcome.wrong is not None
            bar.update(task, advance=1, description=f"{outcome.suite}, {num_wrong} wrong so far")

        yield advance


def _run_tasks(
    url: str,
    api_key: str | None,
    tasks: Sequence[str],
    model: str,
    settings: dict[str, Any],
    limit: int | None,
    concurrency: int,
) -> dict[str, Any]:
    if not tasks:
        return {}
    from mserve.evaluate import run_tasks

    return run_tasks(
        url,
        tasks,
        model=model,
        api_key=api_key,
        settings=settings,
        limit=limit,
        concurrency=concurrency,
    )


def _recorded(
    outcomes: list[Outcome], tasks: dict[str, Any], floors: Sequence[Floor], **facts: Any
) -> Record:
    """Floors under what a task turned out not to measure are left out, so that the rest of a
    long run is kept."""
    from mserve.evaluate import (
        Record,
        check_floors,
        scores_of,
        task_scores,
        unanswered_of,
        wrong_of,
    )

    scores = {**scores_of(outcomes), **task_scores(tasks)}
    floors = [floor for floor in floors if floor.name in scores]
    return Record(
        scores=scores,
        floors=tuple(check_floors(scores, floors)),
        completion_tokens=sum(outcome.answer.completion_tokens for outcome in outcomes),
        wrong=tuple(wrong_of(outcome) for outcome in outcomes if outcome.wrong is not None),
        unanswered=tuple(unanswered_of(outcome) for outcome in outcomes if outcome.unanswered),
        tasks=tasks,
        **facts,
    )


def _keep(record: Record, path: Path | None) -> None:
    """Print the scores, and write the record where one is wanted."""
    print_scores(record.scores)
    if path is None:
        return
    try:
        path.write_bytes(record.to_json())
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def print_scores(scores: Mapping[str, Score]) -> None:
    """A line each, parts under their suite."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("suite", no_wrap=True)
    for title in ("cases", "right", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in sorted(scores):
        score = scores[name]
        right = between = ""
        if score.rate is not None:
            right = f"{100 * score.rate:.1f} %" if score.interval else f"{score.rate:.4g}"
        if score.interval is not None:
            between = "{:.1f} to {:.1f}".format(*(100 * end for end in score.interval))
        table.add_row(f"  {name}" if "/" in name else name, str(score.num_cases), right, between)
    Console(highlight=False, markup=False).print(table)


def print_floors(floors: Sequence[FloorResult]) -> int:
    """A line for each; returns the exit code."""
    for floor in floors:
        verdict = "reached" if floor.is_met else "MISSED"
        found = "no answer" if floor.rate is None else f"{floor.rate:.4g}"
        typer.echo(f"{floor.name}: {found}, at least {floor.floor:g} wanted: {verdict}")
    return 0 if all(floor.is_met for floor in floors) else BELOW_A_FLOOR
