"""``mserve generate``: prompts from a JSON file through the offline ``LLM``, answers to another.

Everything that can be known without torch (the prompts, the output path, the checkpoint's shape,
the sampling numbers) is refused before torch is imported. Knows files; does not know the engine.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from mserve.checkpoint import check_is_folder, open_checkpoint
from mserve.cli.arguments import CheckpointFolder
from mserve.cli.serve_checks import check_fits, parse_bytes
from mserve.core import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    RequestError,
    SetupError,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from mserve.llm import Completion
    from mserve.wire import Loading

Prompt = str | list[int]


def generate(
    checkpoint: CheckpointFolder,
    prompts: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="JSON list; a prompt is a text or a list of ids."
        ),
    ],
    output: Annotated[Path, typer.Option(dir_okay=False, help="JSON file to write.")],
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Per prompt. Default: what the context holds.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. Default: the checkpoint's.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the checkpoint's.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="0 keeps all. Default: the checkpoint's.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(help="Default: the checkpoint's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Alternatives per token; 0: the chosen one only.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; may be repeated.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on to --max-tokens whatever comes.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"], typer.Option(help="auto: the checkpoint's.")
    ] = "auto",
    quantization: Annotated[
        Literal["mxfp8", "fp8", "int8"] | None,
        typer.Option(help="Convert bf16 weights while loading. Default: as the checkpoint is."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens. Default: the checkpoint's.")
    ] = None,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", min=1, help="Ranks.")
    ] = 1,
    enable_expert_parallel: Annotated[
        bool,
        typer.Option("--enable-expert-parallel", help="Whole experts per rank, not slices."),
    ] = False,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            "--gpu-memory-utilization",
            "--memory-utilization",
            min=0.01,
            max=1.0,
            help="Share of the memory to use, weights included.",
        ),
    ] = 0.9,
    kv_cache_dtype: Annotated[
        Literal["auto", "bfloat16", "fp8", "int8"], typer.Option(help="auto: the model's.")
    ] = "auto",
    index_cache_dtype: Annotated[
        Literal["auto", "bfloat16", "fp8", "int8"],
        typer.Option(help="Of M3's index keys. auto: the model's."),
    ] = "auto",
    kv_cache_memory_bytes: Annotated[
        str | None, typer.Option(help="For KV blocks alone; 4G and the like.")
    ] = None,
) -> None:
    """Continue prompts offline. Each answer is {text, token_ids, finish_reason, logprobs}."""
    check_is_folder(checkpoint)
    wanted = read_prompts(prompts)
    check_writable(output)
    engine = EngineConfig(
        model=ModelConfig(
            path=str(checkpoint),
            dtype=dtype,
            quantization=quantization,
            max_model_len=max_model_len,
        ),
        cache=CacheConfig(
            memory_utilization=gpu_memory_utilization,
            kv_cache_memory_bytes=parse_bytes(kv_cache_memory_bytes),
            kv_cache_dtype=kv_cache_dtype,
            index_cache_dtype=index_cache_dtype,
        ),
        parallel=ParallelConfig(
            tensor_parallel_size=tensor_parallel_size,
            enable_expert_parallel=enable_expert_parallel,
        ),
    )

    from mserve.capacity import read_machine

    opened = open_checkpoint(checkpoint)
    check_fits(opened.spec, engine, read_machine())
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "logprobs": logprobs,
        "stop": tuple(stop) if stop else None,
        "ignore_eos": ignore_eos or None,
    }
    sampling = msgspec.structs.replace(
        opened.sampling, **{name: value for name, value in given.items() if value is not None}
    )
    sampling.validate(opened.spec.vocab_size)
    check_ids(wanted, opened.spec.vocab_size)

    from mserve.llm import LLM

    with contextlib.ExitStack() as stack:
        with loading_line() as report:
            llm = stack.enter_context(LLM.of(engine, report))
        advance = stack.enter_context(progress_bar(len(wanted)))
        completions = llm.generate(wanted, sampling, progress=advance)
    write_completions(output, completions)
    typer.echo(f"{len(completions)} answers in {output}", err=True)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON file. Raises ``SetupError`` that names the place of what is wrong."""
    try:
        values = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise SetupError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is not UTF-8: byte {error.start}") from error
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(values, list) or not values:
        raise SetupError(
            f"{path} must hold a JSON list of one or more prompts",
            hint='for example ["a text", [1, 2, 3]]',
        )
    for number, value in enumerate(values):
        if problem := _problem(value):
            raise SetupError(
                f"{path}: prompt {number} {problem}",
                hint="a prompt is a text or a list of token ids; the first is prompt 0",
            )
    return values


def _problem(value: Any) -> str | None:
    """What is wrong with one prompt."""
    if isinstance(value, str):
        return None if value else "is an empty text"
    if not isinstance(value, list):
        return f"is {_json_kind(value)}"
    if not value:
        return "is an empty list"
    for position, token_id in enumerate(value):
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            return f"holds {_json_kind(token_id)} at position {position}"
        if token_id < 0:
            return f"holds {token_id} at position {position}; ids start at 0"
    return None


def _json_kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        float: "a fraction",
    }
    return kinds.get(type(value), "null" if value is None else "a number")


def check_ids(prompts: list[Prompt], vocab_size: int) -> None:
    """Raise ``RequestError`` for the first token id outside the vocabulary."""
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, list) and max(prompt) >= vocab_size:
            raise RequestError(
                f"prompt {number} holds token id {max(prompt)}; "
                f"the vocabulary has {vocab_size} tokens, 0 to {vocab_size - 1}"
            )


def check_writable(path: Path) -> None:
    """Raise ``SetupError`` now rather than after the work is done."""
    folder, part = path.parent, _part(path)
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder", hint="make it, or change --output")
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be written to: {error.strerror}", hint="change --output"
        ) from error


def write_completions(path: Path, completions: Sequence[Completion]) -> None:
    """Write all answers, or leave the file as it was."""
    rows = [
        {
            "text": completion.text,
            "token_ids": list(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "logprobs": _logprobs(completion.logprobs),
        }
        for completion in completions
    ]
    part = _part(path)
    try:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        part.write_text(f"[{lines}]\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SetupError(f"cannot write {path}: {error.strerror}") from error


def _part(path: Path) -> Path:
    """Where the file grows until it is whole."""
    return path.with_name(f".{path.name}.part")


def _logprobs(positions: Sequence[TokenLogprobs] | None) -> list[dict[str, Any]] | None:
    """One object per token; ``top`` is a list of [token id, logprob], best first."""
    if positions is None:
        return None
    return [
        {
            "token_id": position.token_id,
            "logprob": position.logprob,
            "rank": position.rank,
            "top": position.top,
        }
        for position in positions
    ]


@contextlib.contextmanager
def loading_line() -> Iterator[Callable[[Loading], None]]:
    """A line on stderr that says how far loading is; yields what it is told by."""
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda loading: status.update(
            f"loading: {loading.stage} {loading.fraction:.0%} {loading.detail}"
        )


@contextlib.contextmanager
def progress_bar(num_prompts: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields what sets it to (finished prompts, tokens so far). Only a terminal
    sees it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[tokens]} tokens",
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=num_prompts, tokens=0)

        def advance(finished: int, tokens: int) -> None:
            bar.update(task, completed=finished, tokens=tokens)

        yield advance
