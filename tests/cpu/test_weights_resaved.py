"""A toy, loaded and saved again by transformers in each layout it writes, loads here unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from mserve.checkpoint import open_checkpoint
from mserve.toy import write_toy
from mserve.weights import Piece, load

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
    "dtype": "float32",
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    write_toy(folder / "m2", arch="m2", **SMALL)
    write_toy(folder / "m3", arch="m3", num_dense_layers=1, topk_blocks=2, **SMALL)
    return folder


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    tensors = {name: torch.empty(source.shape) for name, source in checkpoint.tensors.items()}
    pieces = [Piece(t, name, (slice(None),) * t.dim()) for name, t in tensors.items()]
    load(checkpoint, pieces, parameters=tensors)
    return tensors


def read(folder: Path) -> torch.nn.Module:
    """The model as transformers reads it; every tensor must be used and none made up."""
    m3 = folder.name == "m3"
    auto = transformers.AutoModelForImageTextToText if m3 else transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("as_published", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_again(
    toys: Path, tmp_path: Path, arch: str, as_published: bool, dtype: torch.dtype
) -> None:
    model = read(toys / arch).to(dtype)
    model.save_pretrained(tmp_path, save_original_format=as_published)
    original, again = loaded(toys / arch), loaded(tmp_path)
    before, after = open_checkpoint(toys / arch).spec, open_checkpoint(tmp_path).spec
    assert after.dtype == str(dtype).removeprefix("torch.")
    assert (before.layers, before.index, before.moe) == (after.layers, after.index, after.moe)
    assert (before.rotary_dim, before.rope_theta) == (after.rotary_dim, after.rope_theta)
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(again[name], tensor.to(dtype).float()), name


def test_m3_saved_as_a_text_only_model(toys: Path, tmp_path: Path) -> None:
    full = read(toys / "m3")
    text = transformers.MiniMaxM3VLForCausalLM(full.config.text_config)
    text.model = full.model.language_model
    text.lm_head = full.lm_head
    text.save_pretrained(tmp_path)
    original, again = loaded(toys / "m3"), loaded(tmp_path)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())


def test_shards_of_a_large_save(toys: Path, tmp_path: Path) -> None:
    read(toys / "m2").save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    original, again = loaded(toys / "m2"), loaded(tmp_path)
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
