"""Writes a bf16 checkpoint again in a packed format, in the layout that other engines read.

    names          those of the input; scales beside each matrix, under the format's own names
    config.json    written last: a folder that has one is a whole checkpoint
    the rest       vision, draft layers, tokenizer, template: copied as they are

One tensor is read, converted and written at a time, some rows at once. Knows files and formats;
does not know what runs them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mserve.checkpoint import (
    STORED_AS,
    Checkpoint,
    NewTensor,
    SpelledTensor,
    TensorSource,
    check_formats,
    convert_on_load,
    is_matrix,
    open_checkpoint,
    spelled_tensors,
    tensors_beside,
    write_shards,
)
from mserve.core import SetupError
from mserve.weights.converting import Quantize
from mserve.weights.fp8_block import quantize_fp8_block
from mserve.weights.int8 import quantize_int8
from mserve.weights.mxfp8 import quantize_mxfp8

ConvertedFormat = Literal["mxfp8", "fp8", "int8"]
Progress = Callable[[int, int], None]

_MAX_SHARD_BYTES = 5_000_000_000
_ROWS = 1024  # converted at once; a multiple of every format's rows that belong together
_COPY_BYTES = 16 << 20
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
_DESCRIPTION_FILE = "quant_model_description.json"
_OWN_FILES = {"config.json", "model.safetensors.index.json", _DESCRIPTION_FILE}

_QUANTIZE: dict[ConvertedFormat, Quantize] = {
    "mxfp8": quantize_mxfp8,
    "fp8": quantize_fp8_block,
    "int8": quantize_int8,
}


def quantize_checkpoint(
    path: Path | str,
    out: Path | str,
    kind: ConvertedFormat,
    progress: Progress = lambda done_bytes, total_bytes: None,
) -> None:
    """Write the checkpoint at ``path`` to ``out``, a new or empty folder, with the matrices of
    attention, MLPs and experts in format ``kind``. ``progress`` gets the bytes written so far and
    in all. ``SetupError`` if the input is not plain, does not fit the format, or ``out`` is not
    empty."""
    checkpoint, folder = open_checkpoint(path), Path(out)
    if checkpoint.spec.quantization.format != "plain":
        raise SetupError(
            f"{path} is quantized already: {checkpoint.spec.quantization.format}",
            hint="quantize the bf16 checkpoint",
        )
    check_formats(convert_on_load(checkpoint.spec, kind), 1, expert_parallel=False)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} is not an empty folder", hint="remove it or name another one")
    tensors = list(spelled_tensors(checkpoint))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = [part for tensor in tensors for part in _new_tensors(tensor, kind)]
        write_shards(folder, new, _MAX_SHARD_BYTES, progress)
        _copy_other_files(checkpoint.path, folder)
        if kind == "int8":
            _write_json(folder / _DESCRIPTION_FILE, _description(tensors, new))
        _write_json(folder / "config.json", _config(checkpoint, tensors, kind))
    except OSError as error:
        raise SetupError(f"{folder} cannot be written: {error.strerror}") from None


def _converts(tensor: SpelledTensor) -> bool:
    return tensor.logical is not None and is_matrix(tensor.logical)


def _new_tensors(tensor: SpelledTensor, kind: ConvertedFormat) -> Iterator[NewTensor]:
    """What is written for one tensor of the input."""
    name, source = tensor.name, tensor.source
    if not _converts(tensor):
        yield NewTensor(name, source.shape, source.dtype, partial(_bytes_of, source))
        return
    matrix = _Matrix(source, _QUANTIZE[kind])
    yield NewTensor(name, source.shape, STORED_AS[kind][0], matrix.packed)
    for beside in tensors_beside(name, source.shape, kind):
        content = matrix.scales
        if beside.name.endswith("_offset"):
            content = partial(_zeros, beside.shape[0])
        yield NewTensor(beside.name, beside.shape, beside.dtypes[0], content)


def _zeros(count: int) -> Iterator[bytes]:
    yield bytes(4 * count)


@dataclass(slots=True)
class _Matrix:
    """A matrix that is read once: its scales, which are small, wait until their turn comes."""

    source: TensorSource
    quantize: Quantize
    waiting: tuple[bytes, ...] = ()

    def packed(self) -> Iterator[bytes]:
        waiting = []
        for start in range(0, self.source.shape[0], _ROWS):
            rows = self.source.rows(start, min(start + _ROWS, self.source.shape[0]))
            data = bytearray(b"".join(_bytes_of(rows)))
            values = torch.frombuffer(data, dtype=_DTYPES[rows.dtype]).view(rows.shape)
            packed, scales = self.quantize(values.float())
            waiting.append(_raw(scales))
            yield _raw(packed)
        self.waiting = tuple(waiting)

    def scales(self) -> Iterator[bytes]:
        yield from self.waiting


def _raw(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _bytes_of(source: TensorSource) -> Iterator[bytes]:
    with source.file.open("rb") as stream:
        stream.seek(source.offset)
        left = source.nbytes
        while left:
            chunk = stream.read(min(left, _COPY_BYTES))
            if not chunk:
                raise OSError(0, f"{source.file} has become shorter")
            left -= len(chunk)
            yield chunk


def _copy_other_files(source: Path, folder: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in _WEIGHT_FILES and file.name not in _OWN_FILES:
            shutil.copyfile(file, folder / file.name)


def _config(
    checkpoint: Checkpoint, tensors: list[SpelledTensor], kind: ConvertedFormat
) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint.path / "config.json").read_bytes())
    # The input's tensors were plain whatever it declared, and only what is written now counts.
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    kept = [
        tensor.name.removesuffix(".weight")
        for tensor in tensors
        if len(tensor.source.shape) > 1 and not _converts(tensor)
    ]
    if kind == "mxfp8":
        config["quantization_config"] = {
            "quant_method": "mxfp8",
            "activation_scheme": "dynamic",
            "scale_fmt": "ue8m0",
            "weight_block_size": [1, 32],
            "ignored_layers": kept,
        }
    elif kind == "fp8":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "float8_e4m3fn",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head", *kept],
        }
    return config


def _description(tensors: list[SpelledTensor], new: list[NewTensor]) -> dict[str, str]:
    """ModelSlim's word for every tensor that was written."""
    kinds = {"model_quant_type": "W8A8_DYNAMIC"}
    converted = {tensor.name for tensor in tensors if _converts(tensor)}
    for tensor in new:
        matrix = tensor.name.removesuffix("_scale").removesuffix("_offset")
        kinds[tensor.name] = "W8A8_DYNAMIC" if matrix in converted else "FLOAT"
    return kinds


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
