"""Opening checkpoints: names of every writer, and files that are damaged in every way we know."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mserve.checkpoint import TensorSource, expected_tensors, open_checkpoint
from mserve.core import CheckpointError
from mserve.toy import write_toy

SMALL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "head_dim": 16,
    "index_head_dim": 16,
    "num_experts": 4,
    "intermediate_size": 16,
    "dense_intermediate_size": 48,
}
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
Header = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    write_toy(folder / "m2", arch="m2", **SMALL)
    write_toy(folder / "m3", arch="m3", num_dense_layers=1, **SMALL)
    return folder


@pytest.fixture
def m3(toys: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toys / "m3", tmp_path / "m3"))


@pytest.fixture
def m2(toys: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toys / "m2", tmp_path / "m2"))


def read_shard(file: Path) -> tuple[Header, bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_shard(file: Path, header: Header, data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rename(folder: Path, spell: Callable[[str], str]) -> None:
    """Spell every tensor's name differently; the index then only names the file."""
    header, data = read_shard(folder / SHARD)
    metadata = header.pop("__metadata__")
    header = {spell(name): entry for name, entry in header.items()}
    write_shard(folder / SHARD, {"__metadata__": metadata, **header}, data)
    index = {"weight_map": dict.fromkeys(header, SHARD)}
    (folder / INDEX).write_text(json.dumps(index))


def content(source: TensorSource) -> bytes:
    with source.file.open("rb") as stream:
        stream.seek(source.offset)
        return stream.read(source.nbytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content(source) for name, source in open_checkpoint(folder).tensors.items()}


def assert_refused(folder: Path, *named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    error = caught.value
    lines = f"{error.message}\n{error.hint or ''}".strip().splitlines()
    assert len(lines) <= 5, lines
    for name in named:
        assert name in error.message


def test_every_expected_tensor_is_found_once(toys: Path) -> None:
    for arch in ("m2", "m3"):
        checkpoint = open_checkpoint(toys / arch)
        expected = expected_tensors(checkpoint.spec)
        assert {n: s.shape for n, s in checkpoint.tensors.items()} == expected
        spans = sorted((s.offset, s.offset + s.nbytes) for s in checkpoint.tensors.values())
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_the_prefix_is_optional(m3: Path) -> None:
    published = contents(m3)
    rename(m3, lambda name: name.removeprefix("language_model."))
    assert contents(m3) == published
    rename(
        m3, lambda n: n.replace("model.", "model.language_model.", 1) if n[:6] == "model." else n
    )
    assert contents(m3) == published


def test_renamed_modules_are_found(m3: Path) -> None:
    """The names that transformers uses in memory, without its stacking."""
    published = contents(m3)

    def spell(name: str) -> str:
        name = name.replace("block_sparse_moe.e_score", "mlp.gate.e_score")
        name = name.replace("block_sparse_moe", "mlp")
        for part in ("q_proj", "k_proj", "q_norm", "k_norm"):
            name = name.replace(f"self_attn.index_{part}", f"self_attn.indexer.{part}")
        return name

    rename(m3, spell)
    assert contents(m3) == published


def test_m2_renamed_modules_are_found(m2: Path) -> None:
    published = contents(m2)
    rename(m2, lambda name: name.replace("block_sparse_moe", "mlp"))
    assert contents(m2) == published


def test_the_index_projections_are_not_taken_for_the_main_ones(m3: Path) -> None:
    tensors = open_checkpoint(m3).tensors
    layer = "model.layers.2.self_attn."
    assert tensors[layer + "q_proj.weight"].shape == (64, 32)
    assert tensors[layer + "index_q_proj.weight"].shape == (32, 32)
    assert tensors[layer + "index_k_proj.weight"].shape == (16, 32)


def test_stacked_tensors_are_split(m3: Path) -> None:
    """Experts as [E, 2I, H] and [E, H, I], gate and up of other MLPs as one, as re-saves do."""
    published = contents(m3)
    header, data = read_shard(m3 / SHARD)

    def bytes_of(name: str) -> bytes:
        begin, end = header[name]["data_offsets"]
        return data[begin:end]

    prefix = "language_model.model.layers."
    stacked: dict[str, tuple[list[int], bytes]] = {}
    for layer in (1, 2):
        experts = f"{prefix}{layer}.block_sparse_moe.experts"
        both = b"".join(bytes_of(f"{experts}.{e}.w{w}.weight") for e in range(4) for w in (1, 3))
        down = b"".join(bytes_of(f"{experts}.{e}.w2.weight") for e in range(4))
        stacked[f"{experts}.gate_up_proj"] = ([4, 32, 32], both)
        stacked[f"{experts}.down_proj"] = ([4, 32, 16], down)
    for mlp, width in (("0.mlp", 48), ("1.block_sparse_moe.shared_experts", 16)):
        name = f"{prefix}{mlp}"
        both = bytes_of(f"{name}.gate_proj.weight") + bytes_of(f"{name}.up_proj.weight")
        stacked[f"{name}.gate_up_proj.weight"] = ([2 * width, 32], both)
        del header[f"{name}.gate_proj.weight"], header[f"{name}.up_proj.weight"]
    header = {name: entry for name, entry in header.items() if ".experts." not in name}
    for name, (shape, added) in stacked.items():
        offsets = [len(data), len(data) + len(added)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        data += added
    write_shard(m3 / SHARD, header, data)
    assert contents(m3) == published


def test_vision_and_draft_tensors_are_read_past(m3: Path, m2: Path) -> None:
    def add(folder: Path, name: str) -> None:
        header, data = read_shard(folder / SHARD)
        place = [len(data), len(data) + 4]
        header[name] = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": place}
        write_shard(folder / SHARD, header, data + bytes(4))

    add(m3, "language_model.model.mtp.layers.0.eh_proj.weight")
    open_checkpoint(m3)
    add(m2, "model.layers.3.self_attn.q_proj.weight")
    assert_refused(m2, "model.layers.3.self_attn.q_proj.weight")
    config = json.loads((m2 / "config.json").read_text())
    (m2 / "config.json").write_text(json.dumps(config | {"num_mtp_modules": 1}))
    open_checkpoint(m2)


def test_the_dtype_is_that_of_the_tensors(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", arch="m2", dtype="float32", **SMALL)
    config = json.loads((tmp_path / "toy/config.json").read_text())
    (tmp_path / "toy/config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert open_checkpoint(tmp_path / "toy").spec.dtype == "float32"


def test_shards_without_an_index_or_in_one_file(m2: Path) -> None:
    published = contents(m2)
    (m2 / INDEX).unlink()
    assert contents(m2) == published
    (m2 / SHARD).rename(m2 / "model.safetensors")
    assert contents(m2) == published


# Every way to damage a tensor's entry, with what the message must name.
LAYER = "model.layers.0.self_attn.q_proj.weight"
OTHER_LAYER = "model.layers.0.self_attn.o_proj.weight"


def _drop(header: Header) -> None:
    del header[LAYER]


def _copied(header: Header) -> dict[str, Any]:
    """An entry like that of LAYER, in the room behind all others."""
    begin, end = header[LAYER]["data_offsets"]
    last = max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
    return {**header[LAYER], "data_offsets": [last, last + end - begin]}


def _extra(header: Header) -> None:
    header[LAYER.replace("q_proj", "gate_proj")] = _copied(header)


def _misshape(header: Header) -> None:
    header[LAYER]["shape"].reverse()


def _half(header: Header) -> None:
    header[LAYER]["dtype"] = "F16"


def _wrong_size(header: Header) -> None:
    header[LAYER]["shape"][0] += 1


def _twice(header: Header) -> None:
    header["language_model." + LAYER] = _copied(header)


def _beyond_the_end(header: Header) -> None:
    header["vision"] = {"dtype": "U8", "shape": [9], "data_offsets": [1 << 40, (1 << 40) + 9]}


def _backwards(header: Header) -> None:
    header[LAYER]["data_offsets"].reverse()


def _overlap(header: Header) -> None:
    end = header[LAYER]["data_offsets"][1]
    header["vision"] = {"dtype": "U8", "shape": [9], "data_offsets": [end - 1, end + 8]}


def _same_bytes(header: Header) -> None:
    header[LAYER]["data_offsets"] = header[OTHER_LAYER]["data_offsets"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_drop, [LAYER, "missing"]),
        (_extra, [SHARD, "model.layers.0.self_attn.gate_proj.weight", "not part of"]),
        (_misshape, [SHARD, LAYER, "[32, 64]", "[64, 32]"]),
        (_half, [SHARD, LAYER, "F16"]),
        (_wrong_size, [SHARD, LAYER, "[65, 32]"]),
        (_twice, [SHARD, LAYER, "also in"]),
        (_beyond_the_end, [SHARD, "truncated"]),
        (_backwards, [SHARD, LAYER]),
        (_overlap, [SHARD, LAYER, "share bytes"]),
        (_same_bytes, [SHARD, LAYER, OTHER_LAYER, "share bytes"]),
    ],
)
def test_a_damaged_entry_is_named(
    m2: Path, damage: Callable[[Header], None], named: list[str]
) -> None:
    header, data = read_shard(m2 / SHARD)
    damage(header)
    write_shard(m2 / SHARD, header, data + bytes(len(data)))
    assert_refused(m2, *named)


def test_many_problems_are_counted(m3: Path) -> None:
    header, data = read_shard(m3 / SHARD)
    kept = {name: entry for name, entry in header.items() if ".experts.2." not in name}
    write_shard(m3 / SHARD, kept, data)
    assert_refused(m3, "6 tensors", "experts.2.w1.weight", "missing")


def _files() -> Iterator[tuple[str, Callable[[Path], object], list[str]]]:
    def index(content: object) -> Callable[[Path], object]:
        return lambda folder: (folder / INDEX).write_text(json.dumps(content))

    def shard(content: bytes) -> Callable[[Path], object]:
        return lambda folder: (folder / SHARD).write_bytes(content)

    def cut(size: int) -> Callable[[Path], object]:
        return lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:size])

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "no folder", shutil.rmtree, ["is not a folder"]
    yield "no config", lambda folder: (folder / "config.json").unlink(), ["config.json"]
    yield "bad config", lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]
    yield "no weights", lambda f: [(f / n).unlink() for n in (SHARD, INDEX)], ["no weights"]
    yield "shard gone", lambda folder: (folder / SHARD).unlink(), [INDEX, SHARD]
    yield "no map", index({}), [INDEX, "weight_map"]
    yield "empty map", index({"weight_map": {}}), [INDEX, "weight_map"]
    yield "odd map", index({"weight_map": {"a": 3}}), [INDEX, "weight_map"]
    yield "map leaves", index({"weight_map": {"a": "../x.safetensors"}}), [INDEX, "../x"]
    yield "pickle", index({"weight_map": {"a": "x.bin"}}), [INDEX, "x.bin"]
    yield "second set", lambda f: shutil.copy(f / SHARD, f / "model.safetensors"), ["both"]
    yield "empty shard", shard(b""), [SHARD]
    yield "junk", shard(b"\x08" + bytes(7) + b"not json"), [SHARD, "not a safetensors"]
    yield "huge header", shard(b"\xff" * 64), [SHARD]
    yield "list header", shard(b"\x02" + bytes(7) + b"[]"), [SHARD]
    yield "pointer", shard(pointer), [SHARD, "LFS"]
    yield "cut in header", cut(100), [SHARD, "truncated"]
    yield "cut in data", cut(50_000), [SHARD, "truncated"]


@pytest.mark.parametrize(
    ("damage", "named"), [pytest.param(d, named, id=name) for name, d, named in _files()]
)
def test_a_damaged_file_is_named(
    m2: Path, damage: Callable[[Path], object], named: list[str]
) -> None:
    damage(m2)
    assert_refused(m2, *named)


def test_a_folder_in_place_of_a_shard_is_an_error_too(m2: Path) -> None:
    (m2 / SHARD).unlink()
    (m2 / SHARD).mkdir()
    assert_refused(m2, SHARD)


def test_opening_reads_no_data(m2: Path) -> None:
    """Zeroed data opens: only headers are looked at, which is what makes 850 GB open at once."""
    header, data = read_shard(m2 / SHARD)
    write_shard(m2 / SHARD, header, bytes(len(data)))
    assert open_checkpoint(m2).spec.family == "m2"
