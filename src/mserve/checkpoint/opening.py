"""Opens a checkpoint: config, shard headers, and every tensor the model needs found and checked.

Reads no tensor data, so a checkpoint of 20,000 tensors is accepted or refused within a second.
Knows files and names; does not know torch, ranks or how weights are stored in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from mserve.checkpoint.config import read_sampling_defaults, read_spec
from mserve.checkpoint.formats import STORED_AS, is_matrix, tensors_beside
from mserve.checkpoint.header import TensorSource, format_name, read_header
from mserve.checkpoint.names import Shape, expected_tensors, is_ignored, logical_tensors
from mserve.checkpoint.shards import shard_files
from mserve.checkpoint.spec import ModelSpec, QuantSpec, WeightFormat
from mserve.core import CheckpointError, SamplingParams

_MAX_SHOWN = 3


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
    tensors, quantization = _find_tensors(folder, spec)
    # What is never quantized shows the precision that activations have.
    dtype = tensors["model.embed_tokens.weight"].dtype
    spec = msgspec.structs.replace(spec, dtype=dtype, quantization=quantization)
    return Checkpoint(
        path=folder, spec=spec, tensors=tensors, sampling=read_sampling_defaults(folder)
    )


class SpelledTensor(NamedTuple):
    """A tensor of a file as it is written there."""

    name: str
    source: TensorSource
    logical: str | None  # None: of what this engine does not run


def spelled_tensors(checkpoint: Checkpoint) -> Iterator[SpelledTensor]:
    """Every tensor of every file, in the files' order. ``CheckpointError`` where one stands for
    several of ours."""
    for file in shard_files(checkpoint.path):
        for name, source in sorted(read_header(file).items(), key=lambda item: item[1].offset):
            if is_ignored(name, checkpoint.spec):
                yield SpelledTensor(name, source, None)
                continue
            logical = [of_ours for of_ours, _ in logical_tensors(name, source, checkpoint.spec)]
            if len(logical) > 1:
                raise CheckpointError(
                    f"{file}: {name} stacks {len(logical)} tensors, as transformers saves them",
                    hint="use the checkpoint in its published layout",
                )
            yield SpelledTensor(name, source, logical[0])


class _Found(NamedTuple):
    name: str  # as the file spells it
    source: TensorSource


def _find_tensors(folder: Path, spec: ModelSpec) -> tuple[dict[str, TensorSource], QuantSpec]:
    """Every tensor of the model by logical name, and how its matrices are stored."""
    problems: dict[str, str] = {}
    found = _read_headers(folder, spec, problems)
    tensors: dict[str, TensorSource] = {}
    formats: dict[str, WeightFormat] = {}
    for name, shape in expected_tensors(spec).items():
        here = _of_shape(name, shape, found, problems)
        if here is None:
            continue
        kind = _format(name, here.dtype, spec.quantization)
        if kind is None:
            problems[name] = _wrong_dtype(found[name], STORED_AS["plain"])
            continue
        tensors[name] = here
        if is_matrix(name):
            formats[name] = kind
            tensors |= _scales(name, shape, kind, found, problems)
    for name in found.keys() - tensors.keys() - problems.keys():
        file, spelled = found[name].source.file.name, found[name].name
        problems[name] = f"{file}: {spelled} is not part of this model"
    if problems:
        raise _summary(folder, list(problems.values()))
    return tensors, _quantization(formats)


def _read_headers(folder: Path, spec: ModelSpec, problems: dict[str, str]) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for file in shard_files(folder):
        for name, source in read_header(file).items():
            if is_ignored(name, spec):
                continue
            for logical, part in logical_tensors(name, source, spec):
                if spec.quantization.format == "mxfp8" and logical.endswith(".weight_scale"):
                    logical += "_inv"  # ModelOpt's spelling
                if logical in found:
                    other = found[logical].source.file.name
                    problems[logical] = f"{file.name}: {name} is also in {other}"
                found[logical] = _Found(name, part)
    return found


def _of_shape(
    name: str, shape: Shape, found: Mapping[str, _Found], problems: dict[str, str]
) -> TensorSource | None:
    """The tensor ``name`` if it has ``shape``, or nothing and what is wrong in ``problems``."""
    here = found.get(name)
    if here is None:
        problems[name] = f"{name} is missing from every file"
        return None
    if here.source.shape != shape:
        problems[name] = (
            f"{here.source.file.name}: {here.name} has shape {list(here.source.shape)},"
            f" expected {list(shape)}"
        )
        return None
    return here.source


def _scales(
    name: str,
    shape: Shape,
    kind: WeightFormat,
    found: Mapping[str, _Found],
    problems: dict[str, str],
) -> dict[str, TensorSource]:
    """What the format ``kind`` keeps beside the matrix ``name``."""
    tensors: dict[str, TensorSource] = {}
    for beside in tensors_beside(name, shape, kind):
        if not beside.required and beside.name not in found:
            continue
        here = _of_shape(beside.name, beside.shape, found, problems)
        if here is not None and here.dtype not in beside.dtypes:
            problems[beside.name] = _wrong_dtype(found[beside.name], beside.dtypes)
        elif here is not None:
            tensors[beside.name] = here
    return tensors


def _format(name: str, dtype: str, declared: QuantSpec) -> WeightFormat | None:
    """How a tensor of ``dtype`` is stored, given what the checkpoint declares; None if it is in no
    format that was declared."""
    if dtype in STORED_AS["plain"]:
        return "plain"
    if is_matrix(name):
        for kind in (declared.format_of(name), declared.format):
            if dtype in STORED_AS[kind]:
                return kind
    return None


def _quantization(formats: Mapping[str, WeightFormat]) -> QuantSpec:
    """The formats found, the most common quantized one as the rule."""
    counts = Counter(kind for kind in formats.values() if kind != "plain")
    most: WeightFormat = counts.most_common(1)[0][0] if counts else "plain"
    return QuantSpec(most, {name: kind for name, kind in formats.items() if kind != most})


def _wrong_dtype(here: _Found, supported: tuple[str, ...]) -> str:
    names = " or ".join(format_name(dtype) for dtype in supported)
    found = format_name(here.source.dtype)
    return f"{here.source.file.name}: {here.name} is {found}, supported: {names}"


def _summary(folder: Path, problems: list[str]) -> CheckpointError:
    """One error for any number of problems, at most five lines with its hint."""
    hint = "compare config.json with the files, or download the checkpoint again"
    if len(problems) == 1:
        return CheckpointError(f"{folder}: {problems[0]}", hint=hint)
    shown = problems[:_MAX_SHOWN]
    more = f", the first {_MAX_SHOWN}" if len(problems) > _MAX_SHOWN else ""
    head = f"{folder}: {len(problems)} tensors do not fit config.json{more}:"
    return CheckpointError("\n  ".join([head, *shown]), hint=hint)
