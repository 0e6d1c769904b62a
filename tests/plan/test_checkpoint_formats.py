"""Quantized checkpoints before torch: what is declared, what files hold, what cannot be cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mserve.checkpoint import (
    NewTensor,
    QuantSpec,
    WeightFormat,
    check_formats,
    convert_on_load,
    expected_tensors,
    is_matrix,
    open_checkpoint,
    parse_config,
    read_spec,
    write_shards,
)
from mserve.core import DTYPE_BYTES, CheckpointError, SetupError
from mserve.toy.config import config_json
from mserve.toy.shape import Arch, ToyShape

SHAPE = ToyShape(
    vocab_size=512,
    hidden_size=256,
    num_layers=3,
    num_dense_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    num_experts=2,
    intermediate_size=128,
    dense_intermediate_size=256,
)
MXFP8 = {
    "quant_method": "mxfp8",
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
    "weight_block_size": [1, 32],
    "ignored_layers": ["lm_head", "gate"],
}
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "float8_e4m3fn",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "MXFP8", "ignore": ["lm_head", "*.gate"]}
FILE = Path("somewhere/config.json")
Q = "model.layers.1.self_attn.q_proj.weight"
W2 = "model.layers.2.block_sparse_moe.experts.1.w2.weight"
GATE = "model.layers.2.block_sparse_moe.gate.weight"
HEAD = "lm_head.weight"


def parsed(arch: Arch, quantization: dict[str, Any] | None, shape: ToyShape = SHAPE) -> Any:
    config = config_json(arch, shape)
    return parse_config(FILE, config | {"quantization_config": quantization})


def write_checkpoint(
    folder: Path,
    arch: Arch = "m3",
    quantization: dict[str, Any] | None = None,
    description: dict[str, str] | None = None,
    change: dict[str, tuple[tuple[int, ...], str] | None] | None = None,
    prefix: str = "language_model.",
    stored: str = "float8_e4m3fn",
) -> Path:
    """A checkpoint of zeros in format ``quantization``; ``change`` replaces or drops tensors."""
    folder.mkdir()
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in expected_tensors(parsed(arch, None)).items():
        matrix = is_matrix(name) and (quantization or description)
        tensors[name] = (shape, stored if matrix else "bfloat16")
        if not matrix:
            continue
        rows, columns = shape
        if description:
            tensors[f"{name}_scale"] = tensors[f"{name}_offset"] = ((rows, 1), "float32")
        elif quantization and quantization["quant_method"] == "fp8":
            blocks = (-(-rows // 128), -(-columns // 128))
            tensors[f"{name}_scale_inv"] = (blocks, "float32")
        else:
            tensors[f"{name}_scale_inv"] = ((rows, columns // 32), "uint8")
    for name, entry in (change or {}).items():
        tensors.pop(name, None)
        if entry is not None:
            tensors[name] = entry

    def zeros(name: str, shape: tuple[int, ...], dtype: str) -> NewTensor:
        size = DTYPE_BYTES[dtype]
        for count in shape:
            size *= count
        return NewTensor(prefix + name, shape, dtype, lambda: iter((bytes(size),)))

    new = [zeros(name, shape, dtype) for name, (shape, dtype) in tensors.items()]
    write_shards(folder, new, 1 << 30, lambda done, total: None)
    config = config_json(arch, SHAPE)
    if quantization:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    if description:
        (folder / "quant_model_description.json").write_text(json.dumps(description))
    return folder


def described(arch: Arch = "m2", prefix: str = "", **kinds: str) -> dict[str, str]:
    """ModelSlim's file: experts dynamic, attention as ``attention`` says."""
    words = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0"}
    for name in expected_tensors(parsed(arch, None)):
        kind = "W8A8_DYNAMIC" if is_matrix(name) else "FLOAT"
        if is_matrix(name) and ".self_attn." in name:
            kind = kinds.get("attention", kind)
        words[prefix + name] = kind
    return words


@pytest.mark.parametrize(
    ("arch", "quantization", "kind"),
    [("m3", MXFP8, "mxfp8"), ("m2", MXFP8, "mxfp8"), ("m3", MODELOPT, "mxfp8"), ("m2", FP8, "fp8")],
)
def test_what_is_declared(arch: Arch, quantization: dict[str, Any], kind: WeightFormat) -> None:
    spec = parsed(arch, quantization)
    assert spec.quantization == QuantSpec(kind)
    if arch == "m3":
        config = config_json(arch, SHAPE)
        config["text_config"]["quantization_config"] = quantization
        assert parse_config(FILE, config).quantization == spec.quantization


def test_layers_that_are_left_out() -> None:
    """By whole path components, by wildcard, with or without the prefix; never by substring."""
    kept = [
        "self_attn.k_proj",
        "*.layers.1.*.experts.0.w1",
        "language_model.model.layers.2.self_attn",
    ]
    quantization = {**MXFP8, "ignored_layers": [*kept, "up_pro", "proj", "lm_head"]}
    exceptions = set(parsed("m3", quantization).quantization.exceptions)
    layers = [f"model.layers.{number}" for number in range(3)]
    attention = [name for name in expected_tensors(parsed("m3", None)) if is_matrix(name)]
    attention = [name for name in attention if name.startswith(f"{layers[2]}.self_attn.")]
    expected = {f"{layer}.self_attn.k_proj.weight" for layer in layers} | set(attention)
    expected.add(f"{layers[1]}.block_sparse_moe.experts.0.w1.weight")
    assert exceptions == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {**FP8, "weight_block_size": None},
        {**FP8, "weight_block_size": [64, 128]},
        {**FP8, "fmt": "float8_e5m2"},
        {**FP8, "activation_scheme": "static"},
        {**MXFP8, "weight_block_size": [1, 16]},
        {**MXFP8, "scale_fmt": "e4m3"},
        {**MXFP8, "ignored_layers": "lm_head"},
        {"quant_method": "modelopt"},
        {**MODELOPT, "quant_algo": "NVFP4"},
        {"quant_method": "awq"},
        {},
    ],
)
def test_a_declaration_we_cannot_honour_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: quantization_config\."):
        parsed("m2", wrong)


@pytest.mark.parametrize(
    ("arch", "quantization"), [("m3", MXFP8), ("m2", MXFP8), ("m2", FP8), ("m3", FP8)]
)
def test_files_hold_what_is_declared(tmp_path: Path, arch: Arch, quantization: Any) -> None:
    opened = open_checkpoint(write_checkpoint(tmp_path / "c", arch, quantization))
    assert opened.spec.quantization == QuantSpec(quantization["quant_method"])
    assert opened.spec.dtype == "bfloat16"
    assert opened.tensors[f"{Q}_scale_inv"].file.parent == tmp_path / "c"


def test_modelopt_spells_the_scale_without_inv_and_torch_types_it(tmp_path: Path) -> None:
    renamed: dict[str, Any] = {f"{Q}_scale_inv": None, f"{Q}_scale": ((512, 8), "float8_e8m0fnu")}
    folder = write_checkpoint(tmp_path / "c", "m3", MODELOPT, change=renamed)
    assert open_checkpoint(folder).tensors[f"{Q}_scale_inv"].dtype == "float8_e8m0fnu"


def test_each_tensor_is_what_its_file_says(tmp_path: Path) -> None:
    """Plain where the declaration says packed, packed where it says ignored."""
    folder = write_checkpoint(
        tmp_path / "c",
        "m3",
        {**MXFP8, "ignored_layers": ["w2"]},
        change={Q: ((512, 256), "bfloat16"), f"{Q}_scale_inv": None},
    )
    assert open_checkpoint(folder).spec.quantization == QuantSpec("mxfp8", {Q: "plain"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({f"{Q}_scale_inv": None}, [f"{Q}_scale_inv", "missing"]),
        ({f"{Q}_scale_inv": ((512, 7), "uint8")}, [f"{Q}_scale_inv", "[512, 7]", "[512, 8]"]),
        ({f"{Q}_scale_inv": ((512, 8), "float32")}, [f"{Q}_scale_inv", "F32", "U8 or F8_E8M0"]),
        ({Q: ((512, 256), "int8")}, [Q, "I8", "BF16 or F32"]),
        ({HEAD: ((512, 256), "float8_e4m3fn")}, [HEAD, "F8_E4M3", "BF16 or F32"]),
        ({GATE: ((2, 256), "float8_e4m3fn")}, [GATE, "F8_E4M3"]),
        ({f"{HEAD}_scale_inv": ((512, 8), "uint8")}, [f"{HEAD}_scale_inv", "not part"]),
        ({Q: ((512, 256), "bfloat16")}, [f"{Q}_scale_inv", "not part"]),
    ],
)
def test_scales_are_checked_like_any_tensor(tmp_path: Path, change: Any, named: list[str]) -> None:
    folder = write_checkpoint(tmp_path / "c", "m3", MXFP8, change=change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert all(word in caught.value.message for word in named), caught.value.message


def test_a_packed_tensor_without_a_declaration_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "c", "m2", change={Q: ((512, 256), "float8_e4m3fn")}, prefix=""
    )
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        open_checkpoint(folder)


STATIC = {
    "input_scale": ((1,), "float32"),
    "input_offset": ((1,), "bfloat16"),
    "quant_bias": ((512,), "int32"),
    "deq_scale": ((512,), "float32"),
}


def test_modelslim_describes_every_tensor(tmp_path: Path) -> None:
    description = described()
    description[Q] = "W8A8"
    static: dict[str, Any] = {Q.replace("weight", key): entry for key, entry in STATIC.items()}
    cache = "model.layers.0.self_attn.k_proj.kv_cache_scale"
    folder = write_checkpoint(
        tmp_path / "c",
        "m2",
        description=description,
        change={**static, cache: ((256,), "float32")},
        prefix="",
        stored="int8",
    )
    (folder / "model.safetensors.index.json").rename(
        folder / "quant_model_weight_w8a8.safetensors.index.json"
    )
    opened = open_checkpoint(folder)
    assert opened.spec.quantization == QuantSpec("int8", {Q: "int8_static"})
    assert Q.replace("weight", "quant_bias") in opened.tensors
    assert cache not in opened.tensors


@pytest.mark.parametrize(
    ("word", "change", "problem"),
    [
        ("W8A8", {}, None),
        ("W8A8", {"weight_scale": None, "weight_offset": None}, None),
        ("W8A8", {"deq_scale": ((512,), "int64")}, None),
        ("W8A8", {"deq_scale": ((512,), "int32")}, "deq_scale is I32, supported: F32 or I64"),
        ("W8A8", {"weight_offset": ((512,), "float32")}, r"weight_offset has shape \[512\]"),
        ("W8A8", {"quant_bias": None}, "quant_bias is missing"),
        ("W8A8_DYNAMIC", {"weight_offset": None}, "weight_offset is missing"),
    ],
)
def test_what_modelslim_keeps_beside_a_matrix(
    tmp_path: Path, word: str, change: Any, problem: str | None
) -> None:
    """Its static form needs neither the scale nor the offset of the dynamic one."""
    beside = (STATIC if word == "W8A8" else {}) | change
    folder = write_checkpoint(
        tmp_path / "c",
        "m2",
        description=described() | {Q: word},
        change={Q.replace("weight", key): entry for key, entry in beside.items()},
        prefix="",
        stored="int8",
    )
    if problem is None:
        assert open_checkpoint(folder).spec.quantization.format_of(Q) == "int8_static"
        return
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(folder)


def test_modelslim_may_spell_names_as_transformers_does(tmp_path: Path) -> None:
    def spelled(name: str) -> str:
        return name.replace("model.layers", "model.language_model.layers").replace(
            "block_sparse_moe", "mlp"
        )

    words = described("m3") | {W2: "FLOAT"}
    folder = write_checkpoint(
        tmp_path / "c",
        "m3",
        description={spelled(name): word for name, word in words.items()},
        change={W2: ((256, 128), "bfloat16"), f"{W2}_scale": None, f"{W2}_offset": None},
        stored="int8",
    )
    assert open_checkpoint(folder).spec.quantization == QuantSpec("int8", {W2: "plain"})
    assert read_spec(folder).quantization == QuantSpec("int8", {W2: "plain"})


@pytest.mark.parametrize("word", ["W4A8_DYNAMIC", "W8A16"])
def test_other_kinds_of_modelslim_are_refused(tmp_path: Path, word: str) -> None:
    description = described() | {W2: word}
    folder = write_checkpoint(
        tmp_path / "c", "m2", description=description, prefix="", stored="int8"
    )
    with pytest.raises(CheckpointError, match=rf"description\.json: .*w2\.weight is \"{word}\""):
        open_checkpoint(folder)


def test_converting_is_for_plain_checkpoints() -> None:
    plain = parsed("m3", None)
    assert convert_on_load(plain, "int8").quantization == QuantSpec("int8", on_load=True)
    mxfp8 = parsed("m3", MXFP8)
    assert convert_on_load(mxfp8, "mxfp8") is mxfp8
    with pytest.raises(SetupError, match="mxfp8"):
        convert_on_load(mxfp8, "fp8")


@pytest.mark.parametrize(
    ("arch", "kind", "ranks", "by_id", "fits"),
    [
        ("m2", "fp8", 1, False, True),
        ("m2", "fp8", 2, False, False),  # experts of 64 per rank
        ("m2", "fp8", 2, True, True),
        ("m3", "fp8", 2, True, False),  # the shared expert is split by width all the same
        ("m3", "mxfp8", 4, False, True),
        ("m3", "mxfp8", 8, False, False),  # 16 columns of w2
        ("m3", "int8", 8, False, True),
        ("m3", "plain", 8, False, True),
    ],
)
def test_ranks_do_not_cut_through_a_scale(
    arch: Arch, kind: WeightFormat, ranks: int, by_id: bool, fits: bool
) -> None:
    spec = msgspec.structs.replace(parsed(arch, None), quantization=QuantSpec(kind))
    if fits:
        check_formats(spec, ranks, expert_parallel=by_id)
        return
    with pytest.raises(SetupError, match=f"{ranks} ranks would cut") as caught:
        check_formats(spec, ranks, expert_parallel=by_id)
    assert caught.value.hint


def test_a_width_that_mxfp8_cannot_have_is_refused() -> None:
    odd = msgspec.structs.replace(SHAPE, hidden_size=48)
    spec = convert_on_load(parsed("m3", None, odd), "mxfp8")
    with pytest.raises(CheckpointError, match="48 wide"):
        check_formats(spec, 1, expert_parallel=False)
    check_formats(convert_on_load(parsed("m3", None, odd), "fp8"), 1, expert_parallel=False)
