"""Loading: pieces against the bytes as safetensors reads them, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mserve.checkpoint import Checkpoint, open_checkpoint
from mserve.core import CheckpointError
from mserve.toy import write_toy
from mserve.weights import Piece, load

Q = "model.layers.1.self_attn.q_proj.weight"
GATE = "model.layers.2.block_sparse_moe.gate.weight"
NORM = "model.norm.weight"
EVERY = slice(None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("toy") / "m3"
    write_toy(folder, arch="m3", vocab_size=700, hidden_size=64, head_dim=16, num_layers=3)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def oracle(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.path.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name.removeprefix("language_model."): tensor for name, tensor in tensors.items()}


def whole(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: torch.full(source.shape, torch.nan, dtype=dtype)
        for name, source in checkpoint.tensors.items()
    }


def pieces_of(tensors: dict[str, torch.Tensor]) -> list[Piece]:
    return [Piece(tensor, name, (EVERY,) * tensor.dim()) for name, tensor in tensors.items()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_whole_tensors_in_any_precision(
    checkpoint: Checkpoint, oracle: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    tensors = whole(checkpoint, dtype)
    load(checkpoint, pieces_of(tensors), parameters=tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, oracle[name].to(dtype)), name


def test_every_order_of_pieces_gives_the_same(
    checkpoint: Checkpoint, oracle: dict[str, torch.Tensor]
) -> None:
    tensors = whole(checkpoint, torch.float32)
    shuffled = torch.randperm(len(tensors), generator=torch.Generator().manual_seed(0)).tolist()
    pieces = pieces_of(tensors)
    load(checkpoint, [pieces[i] for i in shuffled])
    assert all(torch.equal(tensor, oracle[name].float()) for name, tensor in tensors.items())


def test_any_slice_into_any_view(checkpoint: Checkpoint, oracle: dict[str, torch.Tensor]) -> None:
    cut = st.integers(0, 10**6)

    @settings(deadline=None, max_examples=60)
    @given(
        name=st.sampled_from([Q, GATE, NORM, "model.embed_tokens.weight"]),
        cuts=st.tuples(st.tuples(cut, cut), st.tuples(cut, cut)),
        transposed=st.booleans(),
    )
    def check(name: str, cuts: tuple[tuple[int, int], tuple[int, int]], transposed: bool) -> None:
        slices = []
        for size, (first, length) in zip(oracle[name].shape, cuts, strict=False):
            start = first % size
            slices.append(slice(start, start + 1 + length % (size - start)))
        expected = oracle[name][tuple(slices)]
        shape = expected.shape
        if len(shape) == 2 and transposed:
            parameter = torch.full((shape[1], shape[0]), torch.nan)
            view = parameter.T
        else:
            parameter = torch.full((shape[0] + 2, *shape[1:]), torch.nan)
            view = parameter[1:-1]
        load(checkpoint, [Piece(view, name, tuple(slices))])
        assert torch.equal(view, expected.float())
        assert parameter.isnan().sum() == parameter.numel() - expected.numel()

    check()


def test_large_tensors_are_copied_in_steps(
    checkpoint: Checkpoint, oracle: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps far below a page, rows are still complete and pages that were let go return."""
    monkeypatch.setattr("mserve.weights.loading._CHUNK_BYTES", 300)
    tensors = whole(checkpoint, torch.float32)
    marks: list[tuple[int, int]] = []
    load(checkpoint, pieces_of(tensors), lambda done, total: marks.append((done, total)))
    assert all(torch.equal(tensor, oracle[name].float()) for name, tensor in tensors.items())
    assert len(marks) > 2 * len(tensors)
    assert marks == sorted(marks)
    total = sum(source.nbytes for source in checkpoint.tensors.values())
    assert marks[0] == (0, total)
    assert marks[-1] == (total, total)


def test_a_piece_that_fits_nothing_is_a_fault_of_the_model(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no tensor"):
        load(checkpoint, [Piece(torch.empty(1), "model.layers.9.nothing", (EVERY,))])
    with pytest.raises(ValueError, match="shape"):
        load(checkpoint, [Piece(torch.empty(3), NORM, (slice(0, 4),))])
    with pytest.raises(ValueError):
        load(checkpoint, [Piece(torch.empty(64), NORM, (EVERY, EVERY))])


def test_a_parameter_left_unfilled_is_refused(checkpoint: Checkpoint) -> None:
    fused = torch.empty(128)
    first = Piece(fused[:64], NORM, (EVERY,))
    second = Piece(fused[64:], NORM, (EVERY,))
    load(checkpoint, [first, second], parameters={"fused": fused})
    with pytest.raises(ValueError, match="fused"):
        load(checkpoint, [first], parameters={"fused": fused})


@pytest.mark.parametrize("shortened", [0, 1000])
def test_a_file_that_changed_since_it_was_opened(tmp_path: Path, shortened: int) -> None:
    folder = tmp_path / "m2"
    write_toy(folder, arch="m2", vocab_size=400, hidden_size=32, num_layers=1)
    opened = open_checkpoint(folder)
    (shard,) = folder.glob("*.safetensors")
    if shortened:
        os.truncate(shard, shard.stat().st_size - shortened)
    else:
        shard.unlink()
    tensors = whole(opened, torch.float32)
    with pytest.raises(CheckpointError, match="model-00001"):
        load(opened, pieces_of(tensors))


def test_a_shard_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """The kernel refuses plain writable mappings of that size, even if nothing is written."""
    folder = tmp_path / "m2"
    write_toy(folder, arch="m2", vocab_size=400, hidden_size=32, num_layers=1)
    (shard,) = folder.glob("*.safetensors")
    try:
        os.truncate(shard, 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except OSError:
        pytest.skip("this file system has no sparse files of that size")
    opened = open_checkpoint(folder)
    tensors = whole(opened, torch.float32)
    load(opened, pieces_of(tensors), parameters=tensors)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_never_two_copies_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While loading, only the last steps' pages of the 20 MB shard are mapped in memory."""
    monkeypatch.setattr("mserve.weights.loading._CHUNK_BYTES", 1 << 20)
    write_toy(tmp_path / "m2", preset="m2-tiny")
    opened = open_checkpoint(tmp_path / "m2")
    (shard,) = (tmp_path / "m2").glob("*.safetensors")
    resident_bytes: list[int] = []

    def measure(done_bytes: int, total_bytes: int) -> None:
        if done_bytes < total_bytes * len(resident_bytes) / 16:
            return
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        if any(line.endswith(str(shard)) for line in lines):
            size = next(line for line in lines if line.startswith("Rss:"))
            resident_bytes.append(int(size.split()[1]) << 10)

    load(opened, pieces_of(whole(opened, torch.bfloat16)), measure)
    assert len(resident_bytes) > 8
    assert max(resident_bytes) < shard.stat().st_size / 4
