"""What every rank does to be able to run plans: device, threads, model, weights, blocks.

Knows the checkpoint, the groups and the device of one rank. Does not know how ranks are started
(``ranks``), how many blocks there should be (``capacity``) or what is scheduled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mserve.checkpoint import Checkpoint, kv_layout
from mserve.core import EngineConfig, SetupError
from mserve.layers import KVCache
from mserve.matcher import Vocabulary
from mserve.models import build_model
from mserve.parallel import Groups
from mserve.runner import Runner
from mserve.text import load_generation_defaults, load_tokenizer
from mserve.text.dialects import of_family
from mserve.text.grammar import vocabulary_facts
from mserve.weights import load


def dtype_name(config: EngineConfig, checkpoint: Checkpoint) -> str:
    """The precision that weights, activations and cached keys and values have."""
    return checkpoint.spec.dtype if config.model.dtype == "auto" else config.model.dtype


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


def eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """What ends an output: generation_config.json's word before config.json's."""
    defaults = load_generation_defaults(checkpoint.path)
    return defaults.eos_token_ids or checkpoint.spec.eos_token_ids


def load_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The tokens, for the rank that follows grammars; ``None`` without a tokenizer."""
    tokenizer = load_tokenizer(checkpoint.path)
    dialect = of_family(checkpoint.spec.family)
    facts = vocabulary_facts(tokenizer, dialect, eos_token_ids(checkpoint))
    if facts is None:
        return None
    return Vocabulary(facts, lambda text: tokenizer.encode(text, add_special_tokens=False))


def load_runner(
    checkpoint: Checkpoint,
    config: EngineConfig,
    groups: Groups,
    device: torch.device,
    num_blocks: int,
    progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
    *,
    vocabulary: Vocabulary | None = None,
) -> Runner:
    """This rank's share of the model, loaded, with ``num_blocks`` empty KV blocks."""
    spec, dtype = checkpoint.spec, dtype_name(config, checkpoint)
    model = build_model(spec, groups, getattr(torch, dtype), device)
    load(checkpoint, model.pieces(), progress)
    layout = kv_layout(spec, ranks=groups.tensor.size, dtype=dtype)
    return Runner(
        model,
        KVCache(layout, num_blocks, device),
        groups.tensor,
        num_rows=config.scheduler.max_num_seqs,
        vocab_size=spec.vocab_size,
        device=device,
        vocabulary=vocabulary,
    )
