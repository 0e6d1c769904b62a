"""Writes safetensors shards and their index, one tensor's bytes at a time.

Every offset follows from the shapes, so headers are written before the first value exists and
nothing larger than one chunk of one tensor is held. Knows the file format; not what is in it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from mserve.core import DTYPE_BYTES

_FORMAT_NAMES = {"bfloat16": "BF16", "float32": "F32"}
_HEADER_ALIGNMENT_BYTES = 64


class NewTensor(NamedTuple):
    """A tensor to write; ``chunks`` makes its bytes when their turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterator[bytes]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def write_shards(
    folder: Path,
    tensors: list[NewTensor],
    max_shard_bytes: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write ``tensors`` in order. ``progress`` gets the bytes written so far and in all."""
    shards = _split(tensors, max_shard_bytes)
    total_bytes = sum(tensor.nbytes for tensor in tensors)
    done_bytes = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= {tensor.name: file_name for tensor in shard}
        with (folder / file_name).open("wb") as stream:
            stream.write(_header(shard))
            for tensor in shard:
                for chunk in tensor.chunks():
                    stream.write(chunk)
                    done_bytes += len(chunk)
                    progress(done_bytes, total_bytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _split(tensors: list[NewTensor], max_shard_bytes: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def _header(shard: list[NewTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": _FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % _HEADER_ALIGNMENT_BYTES
    text += b" " * padding
    return struct.pack("<Q", len(text)) + text
