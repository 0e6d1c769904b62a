"""``mserve serve``: a checkpoint behind HTTP.

Everything that can be known without torch is checked before the engine process starts.
Knows flags. Does not know how they are checked (``serve_checks``), endpoints (``server``) or how
an engine starts (``engine``).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mserve.checkpoint import open_checkpoint
from mserve.cli.arguments import CheckpointFolder
from mserve.cli.serve_checks import check_fits, choose_dialect, parse_bytes
from mserve.core import (
    BLOCK_TOKENS,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SetupError,
)

ENGINE_COMMAND = [sys.executable, "-m", "mserve.engine.main"]

_LOGGERS_OF_LIBRARIES = ("uvicorn", "uvicorn.error", "asyncio")


def _option(*names: str, **settings: Any) -> Any:
    """A flag that can also be set by an environment variable of its first name."""
    variable = "MSERVE_" + names[0].partition("/")[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(*names, envvar=variable, **settings)


_HTTP, _CHAT, _MODEL, _MEMORY, _WORK = "HTTP", "Chat", "Model", "Memory", "Work"


def serve(
    checkpoint: CheckpointFolder,
    host: Annotated[
        str, _option("--host", help="Address to listen on.", rich_help_panel=_HTTP)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        _option("--port", min=0, max=65535, help="0 takes a free one.", rich_help_panel=_HTTP),
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        _option(
            "--served-model-name",
            help="Name in requests and answers; may be repeated. Default: the folder's name.",
            rich_help_panel=_HTTP,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        _option("--api-key", help="Ask for this key; may be repeated.", rich_help_panel=_HTTP),
    ] = None,
    shutdown_timeout: Annotated[
        float,
        _option(
            "--shutdown-timeout",
            min=0,
            help="Seconds that running requests get after SIGTERM.",
            rich_help_panel=_HTTP,
        ),
    ] = 30.0,
    chat_template: Annotated[
        Path | None,
        _option("--chat-template", help="Instead of the checkpoint's.", rich_help_panel=_HTTP),
    ] = None,
    log_requests: Annotated[
        bool,
        _option(
            "--enable-log-requests/--disable-log-requests",
            help="A line per finished request.",
            rich_help_panel=_HTTP,
        ),
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _option("--log-level", rich_help_panel=_HTTP),
    ] = "info",
    tool_call_parser: Annotated[
        str | None,
        _option(
            "--tool-call-parser",
            "--tool-parser",
            help="Form of tool calls: minimax_m2, minimax_m3. Default: the checkpoint's.",
            rich_help_panel=_CHAT,
        ),
    ] = None,
    reasoning_parser: Annotated[
        str | None,
        _option(
            "--reasoning-parser",
            help="Form of thinking, as above; minimax_m2_append_think leaves it in the content.",
            rich_help_panel=_CHAT,
        ),
    ] = None,
    enable_auto_tool_choice: Annotated[
        bool,
        _option(
            "--enable-auto-tool-choice",
            help="Accepted for old recipes; tools may always be called.",
            rich_help_panel=_CHAT,
        ),
    ] = False,
    reasoning_field: Annotated[
        Literal["both", "reasoning", "reasoning_content"],
        _option(
            "--reasoning-field",
            help="What chat completions call thinking.",
            rich_help_panel=_CHAT,
        ),
    ] = "both",
    keep_thinking: Annotated[
        bool,
        _option(
            "--keep-thinking",
            help="Keep the thinking of earlier turns in M2's prompt, so that it stays cached.",
            rich_help_panel=_CHAT,
        ),
    ] = False,
    stable_prefix: Annotated[
        bool,
        _option(
            "--stable-prefix/--no-stable-prefix",
            help="Drop what known clients change at the head of every prompt.",
            rich_help_panel=_CHAT,
        ),
    ] = True,
    stop_repetition: Annotated[
        int,
        _option(
            "--stop-repetition",
            min=0,
            help="End an answer whose last N tokens repeat one short piece; 0: never.",
            rich_help_panel=_CHAT,
        ),
    ] = 0,
    max_model_len: Annotated[
        int | None,
        _option(
            "--max-model-len",
            min=2,
            help="Context in tokens. Default: the checkpoint's.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        _option("--dtype", help="auto: the checkpoint's.", rich_help_panel=_MODEL),
    ] = "auto",
    quantization: Annotated[
        Literal["mxfp8", "fp8", "int8"] | None,
        _option(
            "--quantization",
            help="Convert bf16 weights while they are loaded. Default: as the checkpoint is.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], _option("--device", rich_help_panel=_MODEL)
    ] = "auto",
    tensor_parallel_size: Annotated[
        int,
        _option("--tensor-parallel-size", "-tp", min=1, help="Ranks.", rich_help_panel=_MODEL),
    ] = 1,
    enable_expert_parallel: Annotated[
        bool,
        _option(
            "--enable-expert-parallel",
            help="Whole experts per rank instead of slices of each.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    seed: Annotated[
        int,
        _option("--seed", help="For requests that bring none.", rich_help_panel=_MODEL),
    ] = 0,
    deterministic: Annotated[
        bool,
        _option(
            "--deterministic",
            help="Start only if answers cannot depend on what else is running, to the bit.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    num_threads: Annotated[
        int | None,
        _option(
            "--num-threads",
            min=1,
            help="CPU threads over all ranks. Default: the cores granted.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float,
        _option(
            "--gpu-memory-utilization",
            "--memory-utilization",
            help="Share of the memory to use, weights included.",
            rich_help_panel=_MEMORY,
        ),
    ] = 0.9,
    kv_cache_memory_bytes: Annotated[
        str | None,
        _option(
            "--kv-cache-memory-bytes",
            help="For KV blocks alone; 4G and the like.",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        Literal["auto", "bfloat16", "fp8", "int8"],
        _option("--kv-cache-dtype", help="auto: the model's.", rich_help_panel=_MEMORY),
    ] = "auto",
    index_cache_dtype: Annotated[
        Literal["auto", "bfloat16", "fp8", "int8"],
        _option(
            "--index-cache-dtype",
            help="Of M3's index keys. auto: the model's.",
            rich_help_panel=_MEMORY,
        ),
    ] = "auto",
    enable_prefix_caching: Annotated[
        bool,
        _option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Reuse the blocks of equal prefixes.",
            rich_help_panel=_MEMORY,
        ),
    ] = True,
    block_size: Annotated[
        int,
        _option("--block-size", help="Tokens per KV block: 128.", rich_help_panel=_MEMORY),
    ] = BLOCK_TOKENS,
    max_num_seqs: Annotated[
        int,
        _option("--max-num-seqs", min=1, help="Requests that run at once.", rich_help_panel=_WORK),
    ] = 256,
    max_num_batched_tokens: Annotated[
        int,
        _option("--max-num-batched-tokens", min=1, help="Tokens per step.", rich_help_panel=_WORK),
    ] = 2048,
    max_waiting: Annotated[
        int,
        _option(
            "--max-waiting",
            min=0,
            help="Requests that may queue; more get 503.",
            rich_help_panel=_WORK,
        ),
    ] = 1024,
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], _option("--scheduling-policy", rich_help_panel=_WORK)
    ] = "fcfs",
    trust_remote_code: Annotated[
        bool,
        _option(
            "--trust-remote-code",
            help="Accepted for old recipes; no code of a checkpoint is ever run.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
) -> None:
    """Serve a checkpoint over the OpenAI HTTP API."""
    if block_size != BLOCK_TOKENS:
        raise SetupError(
            f"--block-size {block_size}: a KV block holds {BLOCK_TOKENS} tokens, as the model's "
            "sparse attention selects them",
            hint="leave the flag out",
        )
    if not 0.0 < gpu_memory_utilization <= 1.0:
        raise SetupError(
            f"--gpu-memory-utilization {gpu_memory_utilization} is not a share between 0 and 1",
            hint="0.9 leaves a tenth to everybody else",
        )
    engine = EngineConfig(
        model=ModelConfig(
            path=str(checkpoint.resolve()),
            dtype=dtype,
            quantization=quantization,
            max_model_len=max_model_len,
            device=device,
        ),
        cache=CacheConfig(
            memory_utilization=gpu_memory_utilization,
            kv_cache_memory_bytes=parse_bytes(kv_cache_memory_bytes),
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_dtype=kv_cache_dtype,
            index_cache_dtype=index_cache_dtype,
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_waiting=max_waiting,
            policy=scheduling_policy,
        ),
        parallel=ParallelConfig(
            tensor_parallel_size=tensor_parallel_size,
            enable_expert_parallel=enable_expert_parallel,
        ),
        seed=seed,
        deterministic=deterministic,
        num_threads=num_threads,
    )

    from mserve.capacity import read_machine
    from mserve.cli.start_display import StartDisplay
    from mserve.server import ServerConfig, Service, listen, load_text_tools, run_server
    from mserve.text import STABLE_PREFIX_RULES

    spec = open_checkpoint(checkpoint).spec
    check_fits(spec, engine, read_machine())
    dialect = choose_dialect(spec.family, tool_call_parser, reasoning_parser)
    text = load_text_tools(checkpoint, chat_template, dialect, spec.eos_token_ids)
    config = ServerConfig(
        served_model_names=tuple(served_model_name or [checkpoint.resolve().name]),
        api_keys=tuple(api_key or ()),
        policy=scheduling_policy,
        shutdown_timeout_s=shutdown_timeout,
        log_requests=log_requests,
        reasoning_field=reasoning_field,
        stable_prefix_rules=tuple(STABLE_PREFIX_RULES) if stable_prefix else (),
        keep_thinking=keep_thinking,
        repetition_tokens=stop_repetition,
    )
    set_up_logging(log_level)
    listener = listen(host, port)
    url = f"http://{url_host(host)}:{listener.getsockname()[1]}"
    with StartDisplay(config.served_model_names[0], url) as display:
        display.say(f"listening on {url}, loading {checkpoint}")
        if enable_auto_tool_choice:
            display.say("--enable-auto-tool-choice has no effect: tools may always be called")
        if trust_remote_code:
            display.say("--trust-remote-code has no effect: the model code is mserve's own")
        run_server(Service(config, text, display), listener, engine, ENGINE_COMMAND)


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    if level != "debug":
        for name in _LOGGERS_OF_LIBRARIES:
            logging.getLogger(name).setLevel(logging.WARNING)


def url_host(host: str) -> str:
    """What to type for an address to listen on."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
