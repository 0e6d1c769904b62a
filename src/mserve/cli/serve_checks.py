"""What of ``mserve serve`` can be refused before anything heavy is imported.

Each check raises ``SetupError`` and says what to change. Knows flags, the checkpoint's facts and
the machine's. Does not know torch, or what a flag is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mserve.core import EngineConfig, SetupError

if TYPE_CHECKING:
    from mserve.capacity import Machine
    from mserve.checkpoint import ModelSpec
    from mserve.text import Dialect

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def choose_dialect(
    family: Literal["m2", "m3"], tool_call_parser: str | None, reasoning_parser: str | None
) -> Dialect:
    """How this model writes thinking and calls: the checkpoint's own way, since another could
    only misread it; the flags may choose among its variants. Raises ``SetupError``."""
    from mserve.text import by_name, of_family

    for flag, name in (
        ("--tool-call-parser", tool_call_parser),
        ("--reasoning-parser", reasoning_parser),
    ):
        if name is not None and by_name(name).family != family:
            raise SetupError(
                f"{flag} {name} reads the markup of another model than this checkpoint holds",
                hint=f"leave the flag out: {of_family(family).name} is chosen by itself",
            )
    return of_family(family) if reasoning_parser is None else by_name(reasoning_parser)


def check_fits(spec: ModelSpec, engine: EngineConfig, machine: Machine) -> None:
    """Raise ``SetupError`` for flags that this model or machine cannot have.

    What a GPU holds only torch can tell, so there the engine finds out; all else is known now.
    """
    from mserve.capacity import cache_layout, max_model_len, plan_memory
    from mserve.checkpoint import check_formats, check_ranks, convert_on_load

    parallel = engine.parallel
    ranks = parallel.tensor_parallel_size
    check_ranks(spec, parallel)
    if engine.model.quantization is not None:
        spec = convert_on_load(spec, engine.model.quantization)
    check_formats(spec, ranks, expert_parallel=parallel.enable_expert_parallel)
    if engine.model.device == "cpu" or (engine.model.device == "auto" and not machine.has_gpu):
        # As if native kernels were there: what turns out to need more, the engine refuses.
        threads = machine.threads(engine.num_threads, ranks)[0].count
        plan_memory(spec, engine, machine.available_bytes // ranks, ranks, native_threads=threads)
    else:
        cache_layout(spec, engine, ranks)
        max_model_len(spec, engine)


def parse_bytes(text: str | None) -> int | None:
    """``4G`` is 4 x 2^30; plain digits are bytes."""
    if text is None:
        return None
    amount = text.strip().upper().removesuffix("B").removesuffix("I")
    digits, unit = (
        (amount[:-1], amount[-1]) if amount[-1:] in ("K", "M", "G", "T") else (amount, "")
    )
    try:
        count = float(digits) * _UNITS[unit]
    except ValueError:
        count = 0.0
    if not 1 <= count < 1 << 60:
        raise SetupError(
            f"--kv-cache-memory-bytes {text} is not an amount of memory",
            hint="write bytes, or a number with K, M, G or T: 4G",
        )
    return int(count)
