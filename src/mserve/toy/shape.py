"""Sizes of a toy checkpoint, and the presets that tests, demo and benchmarks share.

Every size of the family's config that changes what is computed is a field. What never varies in
the family (block size, rope theta, activation constants) is in ``config.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from mserve.core import SetupError

Arch = Literal["m2", "m3"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]

NUM_SPECIAL_TOKENS = 64
_MIN_VOCAB_SIZE = 256 + NUM_SPECIAL_TOKENS  # one token per byte, then the special ones
_MAX_VOCAB_SIZE = 500_000  # about as many pseudo-words as the tokenizer can make


class ToyShape(msgspec.Struct, frozen=True, kw_only=True):
    """What ``mserve toy`` may override. Fields marked M3 are ignored for M2."""

    vocab_size: Annotated[int, msgspec.Meta(ge=_MIN_VOCAB_SIZE, le=_MAX_VOCAB_SIZE)] = 32000
    hidden_size: Positive = 128
    num_layers: Positive = 4
    num_dense_layers: NotNegative = 2  # M3: first layers with full attention and a dense MLP
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    head_dim: Positive = 128  # half of it rotates
    num_experts: Positive = 8
    experts_per_token: Positive = 2
    intermediate_size: Positive = 64  # of an expert, and of M3's shared expert
    dense_intermediate_size: Positive = 256  # M3
    index_head_dim: Positive = 128  # M3
    topk_blocks: Positive = 4  # M3: blocks of 128 tokens that a query attends to
    local_blocks: Positive = 1  # M3: of these, the last ones, always chosen
    init_blocks: NotNegative = 0  # M3: of these, the first ones, always chosen
    max_position_embeddings: Positive = 8192
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class Preset(msgspec.Struct, frozen=True):
    arch: Arch
    shape: ToyShape


PRESETS = {
    "m2-tiny": Preset("m2", ToyShape()),
    "m3-tiny": Preset("m3", ToyShape(num_layers=5)),
    # Wide enough that the weights dominate a decode step, small enough for any test machine.
    "m2-bench": Preset(
        "m2",
        ToyShape(
            hidden_size=1024,
            num_layers=12,
            num_heads=16,
            num_kv_heads=4,
            num_experts=32,
            experts_per_token=8,
            intermediate_size=512,
            max_position_embeddings=32768,
        ),
    ),
    "m3-bench": Preset(
        "m3",
        ToyShape(
            hidden_size=1024,
            num_layers=12,
            num_heads=16,
            num_kv_heads=4,
            num_experts=32,
            experts_per_token=4,
            intermediate_size=512,
            dense_intermediate_size=2048,
            topk_blocks=16,
            max_position_embeddings=131072,
        ),
    ),
    # Larger than the trained demo, for benchmarks: selection drops blocks at 2,048 tokens.
    "demo": Preset(
        "m3",
        ToyShape(
            vocab_size=16384,
            hidden_size=256,
            num_layers=6,
            num_heads=8,
            num_experts=16,
            experts_per_token=4,
            intermediate_size=256,
            dense_intermediate_size=1024,
            topk_blocks=16,
            max_position_embeddings=65536,
        ),
    ),
}


def choose_shape(
    preset: str | None, arch: str | None, overrides: dict[str, int | str | None]
) -> Preset:
    """The preset, or the tiny one of ``arch``, with the overrides that are not None.

    ``SetupError`` for an unknown preset or architecture, or a size out of bounds.
    """
    name = preset or f"{arch or 'm3'}-tiny"
    chosen = PRESETS.get(name)
    if chosen is None:
        wrong = f"preset {preset}" if preset else f"architecture {arch}"
        known = ", ".join(PRESETS) if preset else "m2, m3"
        raise SetupError(f"unknown {wrong}", hint=f"known are {known}")
    if arch is not None and arch != chosen.arch:
        raise SetupError(
            f"preset {preset} is an {chosen.arch}, not an {arch}", hint="leave one of the two out"
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    unknown = set(given) - set(ToyShape.__struct_fields__)
    if unknown:
        raise SetupError(
            f"unknown size {sorted(unknown)[0]}",
            hint=f"known are {', '.join(ToyShape.__struct_fields__)}",
        )
    try:
        shape = msgspec.convert({**msgspec.structs.asdict(chosen.shape), **given}, ToyShape)
    except msgspec.ValidationError as error:
        raise SetupError(f"a size does not fit: {error}") from None
    return Preset(chosen.arch, shape)
