"""Toys: whole and reproducible, of the family's shape, and readable by transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mserve.checkpoint import open_checkpoint
from mserve.core import MserveError, SetupError
from mserve.toy import PRESETS, ToyShape, write_toy

SMALL = {"vocab_size": 512, "hidden_size": 32, "num_layers": 3, "num_experts": 4}
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for preset in ("m2-tiny", "m3-tiny"):
        write_toy(folder / preset[:2], preset=preset)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_transformers_loads_it_without_a_missing_or_unused_tensor(tiny: Path, arch: str) -> None:
    m3 = arch == "m3"
    auto = transformers.AutoModelForImageTextToText if m3 else transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(tiny / arch, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    prompt = torch.randint(0, 32000, (1, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        choices = model(prompt).logits.argmax(-1)
        rounded = model.to(torch.bfloat16)(prompt).logits.argmax(-1)
    assert choices.unique().numel() > 200  # not stuck on a few tokens
    assert (choices == rounded).float().mean() > 0.85  # greedy hardly hangs on rounding


def test_no_value_is_trivial(tiny: Path) -> None:
    tensors = load_file(tiny / "m3/model-00001-of-00001.safetensors")
    layer = "language_model.model.layers.2."
    gate = tensors[layer + "block_sparse_moe.gate.weight"]
    bias = tensors[layer + "block_sparse_moe.e_score_correction_bias"]
    assert gate.dtype == bias.dtype == torch.float32
    assert torch.equal(gate, gate.bfloat16().float())
    assert 0.02 < bias.std() < 0.1
    assert abs(tensors[layer + "input_layernorm.weight"].float().mean()) < 0.05  # centred on zero
    assert 0.05 < tensors[layer + "self_attn.q_norm.weight"].float().std() < 0.15
    m2 = load_file(tiny / "m2/model-00001-of-00001.safetensors")
    assert abs(m2["model.norm.weight"].float().mean() - 1) < 0.05
    up = tensors[layer + "block_sparse_moe.experts.1.w3.weight"].float()
    assert up.std() * 128**0.5 == pytest.approx(0.7, rel=0.05)
    head = tensors["language_model.lm_head.weight"].float()
    assert head.std() * 128**0.5 == pytest.approx(3.0, rel=0.05)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    first, second = (tensors[layer + f"block_sparse_moe.experts.{n}.w1.weight"] for n in (0, 1))
    assert not torch.equal(first, second)


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_toy(tmp_path / name, arch="m3", seed=seed, **SMALL)
    one, same, other = (digests(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {
        "model-00001-of-00001.safetensors"
    }
    assert one.keys() == FILES


def test_values_do_not_depend_on_chunks_or_other_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy(tmp_path / "one", arch="m2", **SMALL)
    monkeypatch.setattr("mserve.toy.values._CHUNK_VALUES", 1001)
    monkeypatch.setattr("mserve.toy.write.MAX_SHARD_BYTES", 50_000)
    marks: list[tuple[int, int]] = []
    write_toy(
        tmp_path / "two",
        arch="m2",
        progress=lambda done, total: marks.append((done, total)),
        **(SMALL | {"num_layers": 4}),
    )
    one = load_file(tmp_path / "one/model-00001-of-00001.safetensors")
    shards = sorted((tmp_path / "two").glob("*.safetensors"))
    assert len(shards) > 3
    two = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert marks == sorted(marks)
    assert marks[-1][0] == marks[-1][1] == sum(t.nbytes for t in two.values())
    assert len(open_checkpoint(tmp_path / "two").tensors) == len(two)


def test_every_size_can_be_overridden(tmp_path: Path) -> None:
    shapes = {
        "vocab_size": 900,
        "hidden_size": 48,
        "num_layers": 4,
        "num_dense_layers": 0,
        "num_heads": 6,
        "num_kv_heads": 3,
        "head_dim": 24,
        "num_experts": 5,
        "experts_per_token": 3,
        "intermediate_size": 40,
        "dense_intermediate_size": 56,
        "index_head_dim": 32,
        "topk_blocks": 7,
        "local_blocks": 2,
        "init_blocks": 1,
        "max_position_embeddings": 4096,
        "dtype": "float32",
    }
    assert shapes.keys() == set(ToyShape.__struct_fields__)
    write_toy(tmp_path / "toy", preset="demo", seed=1, **shapes)
    spec = open_checkpoint(tmp_path / "toy").spec
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (900, 48, 4)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (6, 3, 24)
    assert (spec.moe.num_experts, spec.moe.experts_per_token) == (5, 3)
    assert spec.index is not None
    assert (spec.index.topk_blocks, spec.index.local_blocks, spec.index.init_blocks) == (7, 2, 1)
    assert spec.dtype == "float32"
    assert all(layer.attention == "sparse" for layer in spec.layers)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"preset": "m4-tiny"}, "m4-tiny"),
        ({"arch": "m4"}, "m4"),
        ({"arch": "m2", "preset": "m3-tiny"}, "m3-tiny"),
        ({"width": 3}, "width"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": 100}, "vocab_size"),
        ({"num_kv_heads": 3}, "num_key_value_heads"),
        ({"experts_per_token": 9}, "num_experts_per_tok"),
        ({"index_head_dim": 32}, "index head width, 32"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_sizes_that_make_no_model_write_nothing(
    tmp_path: Path, arguments: dict[str, int | str], named: str
) -> None:
    with pytest.raises(MserveError) as caught:
        write_toy(tmp_path / "toy", **arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, SetupError)
    assert named in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "toy").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.safetensors").write_text("weights")
    with pytest.raises(SetupError, match="not an empty folder"):
        write_toy(tmp_path, arch="m2", **SMALL)
    with pytest.raises(SetupError, match="not an empty folder"):
        write_toy(tmp_path / "precious.safetensors", arch="m2", **SMALL)


def test_an_interrupted_toy_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", arch="m2", progress=stop, **SMALL)
    assert not (tmp_path / "toy/config.json").exists()


def test_presets_are_of_the_benchmarks_shapes() -> None:
    for name, preset in PRESETS.items():
        assert preset.arch == ("m3" if name == "demo" else name[:2])
    bench = PRESETS["m3-bench"].shape
    assert (bench.hidden_size, bench.num_layers, bench.num_experts) == (1024, 12, 32)
    assert (bench.topk_blocks, bench.max_position_embeddings) == (16, 131072)
    config = json.dumps(PRESETS["demo"].shape.max_position_embeddings)
    assert int(config) >= 5000 * 4
