"""Writes a random checkpoint in the layout of the published ones.

config.json is written last: a folder that has one is a whole checkpoint, and one that was
interrupted is never taken for it. Knows the files of a checkpoint; does not know what runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mserve.checkpoint import expected_tensors, parse_config
from mserve.core import SetupError
from mserve.toy.config import VISION, config_json, generation_json
from mserve.toy.shape import Preset, choose_shape
from mserve.toy.shards import NewTensor, write_shards
from mserve.toy.tokenizer import chat_template, tokenizer_config, tokenizer_json
from mserve.toy.values import Shape, stored_dtype, tensor_bytes

MAX_SHARD_BYTES = 500_000_000

Progress = Callable[[int, int], None]


def write_toy(
    out: Path | str,
    *,
    preset: str | None = None,
    arch: str | None = None,
    seed: int = 0,
    progress: Progress = lambda done_bytes, total_bytes: None,
    **shapes: int | str | None,
) -> None:
    """Write a checkpoint to ``out``, a new or empty folder.

    Sizes are the preset's, or of the tiny one of ``arch`` ("m2" or "m3"; default "m3"), with
    ``shapes`` (fields of ``ToyShape``) on top; None leaves a size as it is. The same arguments
    give the same bytes. ``progress`` gets the bytes of weights written so far and in all.
    ``SetupError`` for sizes that make no model, or a folder that holds something.
    """
    toy = choose_shape(preset, arch, shapes)
    folder = Path(out)
    config = config_json(toy.arch, toy.shape)
    spec = parse_config(folder / "config.json", config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} is not an empty folder", hint="remove it or name another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = list(_tensors(toy, seed, expected_tensors(spec)))
        write_shards(folder, tensors, MAX_SHARD_BYTES, progress)
        _write_json(folder / "generation_config.json", generation_json(toy.shape))
        _write_text(folder / "tokenizer.json", tokenizer_json(toy.arch, toy.shape.vocab_size))
        _write_json(folder / "tokenizer_config.json", tokenizer_config(toy.shape))
        _write_text(folder / "chat_template.jinja", chat_template(toy.arch))
        _write_json(folder / "config.json", config)
    except OSError as error:
        raise SetupError(f"{folder} cannot be written: {error.strerror}") from None


def _tensors(toy: Preset, seed: int, text: dict[str, Shape]) -> Iterator[NewTensor]:
    """All tensors under their published names: text first, then M3's vision side."""
    prefix = "language_model." if toy.arch == "m3" else ""
    shapes = {prefix + name: shape for name, shape in text.items()}
    if toy.arch == "m3":
        shapes |= _vision_tensors(toy.shape.hidden_size)
    for name, shape in shapes.items():
        dtype = toy.shape.dtype
        chunks = partial(tensor_bytes, name, shape, dtype, toy.arch, seed)
        yield NewTensor(name, shape, stored_dtype(name, dtype), chunks)


def _vision_tensors(text_hidden: int) -> dict[str, Shape]:
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    merged = VISION["spatial_merge_size"] ** 2 * text_hidden
    patch = (VISION["num_channels"], VISION["temporal_patch_size"], *[VISION["patch_size"]] * 2)
    tower = "vision_tower.vision_model"
    shapes: dict[str, Shape] = {f"{tower}.embeddings.patch_embedding.weight": (width, *patch)}
    layer = f"{tower}.encoder.layers.0"
    norms = [f"{tower}.pre_layrnorm", f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    linears = {f"{layer}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    linears |= {
        f"{layer}.mlp.fc1": (inner, width),
        f"{layer}.mlp.fc2": (width, inner),
        "multi_modal_projector.linear_1": (text_hidden, width),
        "multi_modal_projector.linear_2": (text_hidden, text_hidden),
        "patch_merge_mlp.linear_1": (text_hidden, merged),
        "patch_merge_mlp.linear_2": (text_hidden, text_hidden),
    }
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _write_text(file, json.dumps(content, indent=2) + "\n")


def _write_text(file: Path, content: str) -> None:
    file.write_text(content, encoding="utf-8")
