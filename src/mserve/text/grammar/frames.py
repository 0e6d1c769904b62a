"""Byte strings on a pipe, each with its length before it."""

from __future__ import annotations

from typing import BinaryIO

_LENGTH_BYTES = 8


def write_frame(stream: BinaryIO, frame: bytes) -> None:
    stream.write(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """``None`` at the end of the stream."""
    header = stream.read(_LENGTH_BYTES)
    if len(header) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(header, "big")
    frame = stream.read(length)
    return frame if len(frame) == length else None
