"""Opens a checkpoint: config, shard headers, and every tensor the model needs found and checked.

Reads no tensor data, so a checkpoint of 20,000 tensors is accepted or refused within a second.
Knows files and names; does not know torch, ranks or how weights are stored in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mserve.checkpoint.config import read_sampling_defaults, read_spec
from mserve.checkpoint.header import TensorSource, read_header
from mserve.checkpoint.names import Shape, expected_tensors, is_ignored, logical_tensors
from mserve.checkpoint.shards import shard_files
from mserve.checkpoint.spec import ModelSpec
from mserve.core import CheckpointError, SamplingParams

_MAX_SHOWN = 3
_READABLE = ("bfloat16", "float32")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is known to be whole: every tensor of ``spec`` is in ``tensors``, by
    logical name, with the right shape and a precision we read."""

    path: Path
    spec: ModelSpec
    tensors: Mapping[str, TensorSource]
    sampling: SamplingParams  # defaults of generation_config.json

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.tensors)} tensors)"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check all but the data. ``CheckpointError`` names file and key."""
    folder = Path(path)
    spec = read_spec(folder)
    tensors = _find_tensors(folder, spec)
    dtype = tensors["model.layers.0.self_attn.q_proj.weight"].dtype
    spec = msgspec.structs.replace(spec, dtype=dtype)
    return Checkpoint(
        path=folder, spec=spec, tensors=tensors, sampling=read_sampling_defaults(folder)
    )


def _find_tensors(folder: Path, spec: ModelSpec) -> dict[str, TensorSource]:
    expected = expected_tensors(spec)
    found: dict[str, TensorSource] = {}
    problems: dict[str, str] = {}
    for file in shard_files(folder):
        for name, source in read_header(file).items():
            if is_ignored(name, spec):
                continue
            for logical, part in logical_tensors(name, source, spec):
                problem = _problem(logical, part, expected, found)
                if problem is None:
                    found[logical] = part
                else:
                    problems[logical] = f"{file.name}: {name} {problem}"
    for name in expected:
        if name not in found and name not in problems:
            problems[name] = f"{name} is missing from every file"
    if problems:
        raise _summary(folder, list(problems.values()))
    return {name: found[name] for name in expected}


def _problem(
    logical: str,
    part: TensorSource,
    expected: Mapping[str, Shape],
    found: Mapping[str, TensorSource],
) -> str | None:
    """What is wrong with one tensor, as the end of a sentence."""
    if logical not in expected:
        return "is not part of this model"
    if logical in found:
        return f"is also in {found[logical].file.name}"
    if part.shape != expected[logical]:
        return f"has shape {list(part.shape)}, expected {list(expected[logical])}"
    if part.dtype not in _READABLE:
        return f"is {part.dtype}, supported: BF16 or F32"
    return None


def _summary(folder: Path, problems: list[str]) -> CheckpointError:
    """One error for any number of problems, at most five lines with its hint."""
    hint = "compare config.json with the files, or download the checkpoint again"
    if len(problems) == 1:
        return CheckpointError(f"{folder}: {problems[0]}", hint=hint)
    shown = problems[:_MAX_SHOWN]
    more = f", the first {_MAX_SHOWN}" if len(problems) > _MAX_SHOWN else ""
    head = f"{folder}: {len(problems)} tensors do not fit config.json{more}:"
    return CheckpointError("\n  ".join([head, *shown]), hint=hint)
