"""What every rank does to be able to run plans: device, threads, model, weights, blocks.

Knows the checkpoint, the groups and the device of one rank. Does not know how ranks are started
(``ranks``), how many blocks there should be (``capacity``) or what is scheduled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from mserve.capacity import cache_layout
from mserve.checkpoint import (
    Checkpoint,
    ModelSpec,
    check_formats,
    convert_on_load,
    heads_on_rank,
)
from mserve.core import EngineConfig, SetupError
from mserve.kernels import KernelChoice, choose_kernels, native
from mserve.layers import KVCache, check_kernels
from mserve.matcher import Vocabulary
from mserve.models import build_model
from mserve.parallel import Groups
from mserve.runner import Runner
from mserve.weights import Piece, load

logger = logging.getLogger(__name__)


def dtype_name(config: EngineConfig, checkpoint: Checkpoint) -> str:
    """The precision that weights, activations and cached keys and values have."""
    return checkpoint.spec.dtype if config.model.dtype == "auto" else config.model.dtype


def spec_to_run(config: EngineConfig, checkpoint: Checkpoint) -> ModelSpec:
    """The model with its matrices stored as ``config`` asks. ``SetupError`` if they cannot be."""
    spec, wanted = checkpoint.spec, config.model.quantization
    if wanted is not None:
        spec = convert_on_load(spec, wanted)
    parallel = config.parallel
    check_formats(
        spec, parallel.tensor_parallel_size, expert_parallel=parallel.enable_expert_parallel
    )
    return spec


def model_id(config: EngineConfig, checkpoint: Checkpoint) -> str:
    """What names cached blocks: equal only where equal tokens give equal bytes."""
    stored, cache = spec_to_run(config, checkpoint).quantization.format, config.cache
    what = (dtype_name(config, checkpoint), stored, cache.kv_cache_dtype, cache.index_cache_dtype)
    return ":".join((str(checkpoint.path.resolve()), *what))


def device_of_rank(config: EngineConfig, rank: int) -> torch.device:
    """Ranks share one CPU, or have a GPU each. ``SetupError`` if there is none for this rank."""
    wanted = config.model.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SetupError("no CUDA device was found", hint="use --device cpu")
    if rank >= torch.cuda.device_count():
        raise SetupError(
            f"{config.parallel.tensor_parallel_size} ranks need as many GPUs, and there are "
            f"{torch.cuda.device_count()}",
            hint="lower --tensor-parallel-size",
        )
    return torch.device("cuda", rank)


def use_threads(
    config: EngineConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    threads: int,
    cpus: Sequence[int] = (),
) -> KernelChoice:
    """Give this rank ``threads`` CPU threads, on ``cpus`` if there is one for each, and the fastest
    kernels there are for what it runs."""
    torch.set_num_threads(threads)
    kernels = choose_kernels(device, threads, cpus, _sizes(config, checkpoint.spec))
    if config.deterministic:
        _check_deterministic(config, kernels)
    return kernels


def _sizes(config: EngineConfig, spec: ModelSpec) -> native.Sizes:
    """What native kernels have bounds for."""
    index, experts = spec.index, spec.moe.experts_per_token
    if index is None:
        return native.Sizes(head_widths=(spec.head_dim,), experts_per_token=experts)
    return native.Sizes(
        head_widths=(spec.head_dim, index.head_dim),
        experts_per_token=experts,
        chosen_blocks=index.topk_blocks,
        index_groups=heads_on_rank(index.num_heads, config.parallel.tensor_parallel_size),
    )


def _check_deterministic(config: EngineConfig, kernels: KernelChoice) -> None:
    """``SetupError`` unless a request gets the same bits alone and in any batch."""
    if config.parallel.tensor_parallel_size > 1:
        raise SetupError(
            "--deterministic holds for one rank: a sum over ranks may change its order with the "
            "number of tokens",
            hint="use --tensor-parallel-size 1, or leave --deterministic out",
        )
    if not kernels.batch_invariant:
        raise SetupError(
            f"--deterministic needs native kernels for everything; here: {kernels.line}",
            hint="serve on a CPU with the C++ kernels built, or leave --deterministic out",
        )


def load_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The tokens, for the rank that follows grammars; ``None`` without a tokenizer."""
    # Imported late: the rest of the engine needs none of the libraries for text.
    from mserve.text import load_tokenizer, of_family
    from mserve.text.grammar import vocabulary_facts

    tokenizer = load_tokenizer(checkpoint.path)
    dialect = of_family(checkpoint.spec.family)
    facts = vocabulary_facts(tokenizer, dialect, checkpoint.spec.eos_token_ids)
    if facts is None:
        return None
    return Vocabulary(facts, lambda text: tokenizer.encode(text, add_special_tokens=False))


def touch_weights(pieces: Iterable[Piece]) -> None:
    """Put the rows of every part of a matrix near the threads that will read them.

    A matrix of several parts that is read as one, as queries, keys and values are, is split a
    little differently from its parts, and that little of it is read from another node."""
    for piece in pieces:
        for tensor in piece.stores:
            native.touch_rows(tensor)


def load_runner(
    checkpoint: Checkpoint,
    config: EngineConfig,
    groups: Groups,
    device: torch.device,
    num_blocks: int,
    kernels: KernelChoice,
    progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
    *,
    nodes: Sequence[int] = (),
    vocabulary: Vocabulary | None = None,
) -> Runner:
    """This rank's share of the model, loaded, with ``num_blocks`` empty KV blocks. Its memory is
    spread over ``nodes``, those of its threads, if these are pinned. Kernels other than the
    reference are held against it first."""
    spec, dtype = spec_to_run(config, checkpoint), dtype_name(config, checkpoint)
    model = build_model(spec, groups, getattr(torch, dtype), device)
    spread = kernels.pinned and len(nodes) > 1
    if spread:
        touch_weights(model.pieces())
    load(checkpoint, model.pieces(), progress)
    cache = KVCache(cache_layout(spec, config, groups.tensor.size), num_blocks, device)
    if spread and not native.interleave(cache.pool, nodes):
        logger.warning("KV blocks may all lie on one NUMA node: the system forbids mbind")
    if kernels.implementation != "reference":
        with torch.inference_mode():
            check_kernels(model, cache)
    return Runner(
        model,
        cache,
        groups.tensor,
        num_rows=config.scheduler.max_num_seqs,
        vocab_size=spec.vocab_size,
        device=device,
        vocabulary=vocabulary,
        record_decoding=kernels.implementation == "native" and groups.tensor.size == 1,
    )
