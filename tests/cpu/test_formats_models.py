"""Whole models from packed checkpoints: the values loaded, the text made, shards, cache types."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file

from mserve.capacity import weight_bytes
from mserve.checkpoint import (
    ModelSpec,
    QuantSpec,
    convert_on_load,
    expected_tensors,
    is_matrix,
    open_checkpoint,
)
from mserve.core import CacheConfig, CheckpointError, SamplingParams, SetupError
from mserve.kernels import use_kernels
from mserve.llm import LLM
from mserve.models import build_model
from mserve.parallel import Groups, SoloGroup, close_groups, init_groups
from mserve.testing import formats as oracle
from mserve.testing.native import native_library  # noqa: F401 - a fixture
from mserve.testing.tiny_models import (
    CPU,
    Session,
    load_model,
    m2_spec,
    m3_spec,
    new_cache,
    random_tensors,
    random_tokens,
    relative_error,
)
from mserve.testing.toys import BareEngine, greedy, small_toy, transformers_of
from mserve.weights import load, quantize_checkpoint

Arrays = dict[str, torch.Tensor]

FORMATS = ("mxfp8", "fp8", "int8")
COUNT = 10
PROMPTS = [random_tokens(length, seed=length, vocab_size=1000) for length in (3, 130, 389)]
RULE = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=COUNT)
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """What most tests here hold against transformers; one before may have chosen the other."""
    use_kernels("reference")
    yield
    use_kernels("reference")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both architectures in fp32, plain and in each packed format."""
    folder = tmp_path_factory.mktemp("formats")
    for arch in ("m2", "m3"):
        plain = small_toy(folder, arch)
        for kind in FORMATS:
            quantize_checkpoint(plain, folder / f"{arch}-{kind}", kind)
    return folder


def files_of(path: Path) -> Arrays:
    return {
        name: values
        for file in path.glob("*.safetensors")
        for name, values in load_file(file).items()
    }


def logical(name: str) -> str:
    return name.removeprefix("language_model.")


def decoded(tensors: Arrays, name: str) -> np.ndarray:
    """The values of matrix ``name``, by the oracle."""
    packed = tensors[name]
    if packed.dtype == torch.int8:
        return packed.numpy() * tensors[f"{name}_scale"].numpy()
    codes, scale = packed.view(torch.uint8).numpy(), tensors[f"{name}_scale_inv"].numpy()
    decode = oracle.mxfp8_decode if scale.dtype == np.uint8 else oracle.fp8_block_decode
    return decode(codes, scale)


def encoded(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    return {
        "mxfp8": oracle.mxfp8_encode,
        "fp8": oracle.fp8_block_encode,
        "int8": oracle.int8_encode,
    }[kind](values)


def write_decoded(packed: Path, plain: Path, out: Path) -> Path:
    """The checkpoint ``packed`` with its values in fp32, in the files of ``plain``."""
    tensors = files_of(packed)
    shutil.copytree(plain, out)
    for file in out.glob("*.safetensors"):
        values = load_file(file)
        for name in values:
            if is_matrix(logical(name)):
                values[name] = torch.from_numpy(decoded(tensors, name))
        save_file(values, file, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantized_checkpoint_holds_what_the_oracle_says(
    toys: Path, arch: str, kind: str
) -> None:
    """Every matrix and no other tensor, under published names, bit for bit."""
    before, after = files_of(toys / arch), files_of(toys / f"{arch}-{kind}")
    matrices = {name for name in before if is_matrix(logical(name))}
    scales = {"int8": ("_scale", "_offset")}.get(kind, ("_scale_inv",))
    assert after.keys() == before.keys() | {n + s for n in matrices for s in scales}
    for name in before.keys() - matrices:
        assert torch.equal(after[name], before[name]), name
    for name in sorted(matrices)[::7]:
        packed, scale = encoded(before[name].float().numpy(), kind)
        np.testing.assert_array_equal(after[name].view(torch.uint8).numpy(), packed.view(np.uint8))
        np.testing.assert_array_equal(after[name + scales[0]].numpy(), scale)
    other_files = {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert other_files <= {file.name for file in (toys / f"{arch}-{kind}").iterdir()}


@pytest.mark.parametrize("kind", ["mxfp8", "int8"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantized_checkpoint_declares_its_own_format_only(
    toys: Path, tmp_path: Path, kind: Any, nested: bool
) -> None:
    """Whatever a plain input declared, at either place of its config."""
    plain = Path(shutil.copytree(toys / "m3", tmp_path / "plain"))
    config = json.loads((plain / "config.json").read_text())
    part = config["text_config"] if nested else config
    part["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (plain / "config.json").write_text(json.dumps(config))
    quantize_checkpoint(plain, tmp_path / "out", kind)
    for name in ("config.json", "quant_model_description.json"):
        file, usual = tmp_path / "out" / name, toys / f"m3-{kind}" / name
        assert file.exists() == usual.exists()
        assert not file.exists() or json.loads(file.read_text()) == json.loads(usual.read_text())


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("kind", FORMATS)
def test_converting_on_load_equals_a_quantized_checkpoint(
    toys: Path, arch: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in steps far smaller than a tensor, and neither makes any value plain."""
    monkeypatch.setattr("mserve.weights.loading._CHUNK_BYTES", 5000)
    plain = open_checkpoint(toys / arch)
    converted = msgspec.structs.replace(plain, spec=convert_on_load(plain.spec, kind))
    weights = []
    for checkpoint in (converted, open_checkpoint(toys / f"{arch}-{kind}")):
        model = build_model(checkpoint.spec, Groups(), torch.float32, CPU)
        load(checkpoint, model.pieces())
        weights.append(matrices_of(model))
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert "Plain" not in type(weight).__name__
        assert torch.equal(weight.dequantize(), weights[1][name].dequantize()), name


def matrices_of(model: Any) -> dict[str, Any]:
    """Every stored matrix or stack of a model, by where it is."""
    found = {}
    for number, layer in enumerate(model.layers):
        owners = [layer.attention, layer.mlp, getattr(layer.mlp, "shared", None)]
        for owner in filter(None, owners):
            for name in ("projection", "output", "gate_up", "down"):
                if hasattr(owner, name):
                    found[f"{number}.{type(owner).__name__}.{name}"] = getattr(owner, name)
    return found


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("kind", ["mxfp8", "fp8"])
def test_text_equals_transformers_on_the_dequantized_weights(
    toys: Path, tmp_path: Path, arch: str, kind: str
) -> None:
    packed = toys / f"{arch}-{kind}"
    reference = transformers_of(write_decoded(packed, toys / arch, tmp_path / "decoded"))
    outputs = BareEngine(packed).run(*((prompt, RULE) for prompt in PROMPTS))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output.new_token_ids == greedy(reference, prompt, COUNT)


Linear = Callable[..., torch.Tensor]


def transformers_in_int8(
    path: Path, monkeypatch: pytest.MonkeyPatch, quantized: Callable[[Linear, Any, Any], Any]
) -> list[list[int]]:
    """Greedy answers of transformers where every linear of the blocks goes through ``quantized``:
    all but the router (8 rows) and the head (1024 rows)."""
    model = transformers_of(path)
    model.set_experts_implementation("eager")
    plain = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if weight.shape[0] in (8, 1024):
            return plain(x, weight, bias)
        return quantized(plain, x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    answers = [greedy(model, prompt, COUNT) for prompt in PROMPTS]
    monkeypatch.undo()
    return answers


def per_token(plain: Linear, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return plain((x / scale.clamp_min(1e-38)).round() * scale, weight)


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_int8_text_equals_transformers_with_quantized_activations(
    toys: Path, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = toys / f"{arch}-int8"
    decoded_path = write_decoded(packed, toys / arch, tmp_path / "decoded")
    expected = transformers_in_int8(decoded_path, monkeypatch, per_token)
    outputs = BareEngine(packed).run(*((prompt, RULE) for prompt in PROMPTS))
    assert [output.new_token_ids for output in outputs] == expected


INPUT_SCALE, INPUT_OFFSET = 0.0625, 11.0


def write_static(folder: Path, out: Path, *, whole: bool, packed_factors: bool) -> Path:
    """ModelSlim's usual mixture: attention static, experts dynamic. Static matrices keep what
    dynamic ones have if ``whole``, and with ``packed_factors`` their factors within int64."""
    shutil.copytree(folder, out)
    description = json.loads((out / "quant_model_description.json").read_text())
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [n for n in tensors if ".self_attn." in n and is_matrix(logical(n))]:
            module, packed = name.removesuffix(".weight"), tensors[name]
            tensors[f"{module}.input_scale"] = torch.tensor([INPUT_SCALE])
            tensors[f"{module}.input_offset"] = torch.tensor([INPUT_OFFSET])
            bias = -INPUT_OFFSET * packed.double().sum(-1)
            tensors[f"{module}.quant_bias"] = bias.to(torch.int32)
            factors = INPUT_SCALE * tensors[f"{name}_scale"][:, 0]
            integers = factors.view(torch.int32).long()
            tensors[f"{module}.deq_scale"] = integers if packed_factors else factors
            description[name] = "W8A8"
            if not whole:
                del tensors[f"{name}_scale"], tensors[f"{name}_offset"]
        save_file(tensors, file, metadata={"format": "pt"})
    (out / "model.safetensors.index.json").unlink()
    (out / "quant_model_description.json").write_text(json.dumps(description))
    return out


@pytest.mark.parametrize(
    ("arch", "whole", "packed_factors"),
    [("m2", True, False), ("m3", True, True), ("m2", False, True), ("m3", False, False)],
)
def test_static_int8_text_equals_transformers_with_quantized_activations(
    toys: Path,
    tmp_path: Path,
    arch: str,
    whole: bool,
    packed_factors: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    static = write_static(
        toys / f"{arch}-int8", tmp_path / "static", whole=whole, packed_factors=packed_factors
    )
    decoded_path = write_decoded(toys / f"{arch}-int8", toys / arch, tmp_path / "decoded")
    attention = {
        values.numpy().tobytes()
        for name, values in files_of(decoded_path).items()
        if ".self_attn." in name and is_matrix(logical(name))
    }

    def quantized(plain: Linear, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.detach().numpy().tobytes() not in attention:
            return per_token(plain, x, weight)
        integers = ((x / INPUT_SCALE).round() + INPUT_OFFSET).clamp(-128, 127) - INPUT_OFFSET
        return plain(integers * INPUT_SCALE, weight)

    expected = transformers_in_int8(decoded_path, monkeypatch, quantized)
    outputs = BareEngine(static).run(*((prompt, RULE) for prompt in PROMPTS))
    assert [output.new_token_ids for output in outputs] == expected
    spec = open_checkpoint(static).spec
    assert {spec.quantization.format_of(Q), spec.quantization.format} == {"int8_static", "int8"}


@pytest.mark.parametrize("static", [False, True])
def test_asymmetric_int8_is_refused(toys: Path, tmp_path: Path, static: bool) -> None:
    folder = tmp_path / "asymmetric"
    if static:
        write_static(toys / "m2-int8", folder, whole=True, packed_factors=False)
    else:
        shutil.copytree(toys / "m2-int8", folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[f"{Q}_offset"][3] = 1.0
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="asymmetric"):
        BareEngine(folder)


def test_matrices_of_several_formats_in_one_layer(toys: Path, tmp_path: Path) -> None:
    """A projection of plain and packed parts, and a stack of plain and packed experts."""
    folder = Path(shutil.copytree(toys / "m3-mxfp8", tmp_path / "mixed"))
    plain = files_of(toys / "m3")
    kept = ("layers.1.self_attn.k_proj.weight", "layers.2.block_sparse_moe.experts.5.w1.weight")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in [n for n in tensors if n.endswith(kept)]:
        tensors[name] = plain[name]
        del tensors[f"{name}_scale_inv"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert len(open_checkpoint(folder).spec.quantization.exceptions) == 2
    reference = Path(shutil.copytree(toys / "m3", tmp_path / "reference"))
    (file,) = reference.glob("*.safetensors")
    values = load_file(file)
    for name in values:
        if is_matrix(logical(name)) and not name.endswith(kept):
            values[name] = torch.from_numpy(decoded(tensors, name))
    save_file(values, file, metadata={"format": "pt"})
    outputs = BareEngine(folder).run((PROMPTS[1], RULE))
    assert outputs[0].new_token_ids == greedy(transformers_of(reference), PROMPTS[1], COUNT)


def wide(spec: ModelSpec) -> ModelSpec:
    """Sizes that two ranks may cut at blocks of 128."""
    moe = msgspec.structs.replace(spec.moe, intermediate_size=256)
    if moe.shared_intermediate_size:
        moe = msgspec.structs.replace(moe, shared_intermediate_size=256)
    return msgspec.structs.replace(spec, moe=moe, dense_intermediate_size=256)


SIZES: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 32, "hidden_size": 128}
SPECS = {
    "m2": wide(m2_spec(num_layers=1, **SIZES)),
    "m3": wide(m3_spec(layers="fd sm", topk_blocks=2, **SIZES)),
}


def packed_tensors(spec: ModelSpec, kind: str) -> Arrays:
    """A random checkpoint of ``spec`` in format ``kind``, by the oracle. For int8 all of attention
    is static."""
    tensors: Arrays = {}
    for name, values in random_tensors(spec, seed=1).items():
        tensors[name] = values
        if not is_matrix(name):
            continue
        packed, scale = map(torch.from_numpy, encoded(values.numpy(), kind))
        if kind != "int8":
            tensors[name] = packed.view(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
            continue
        tensors |= {name: packed, f"{name}_scale": scale, f"{name}_offset": torch.zeros_like(scale)}
        if ".self_attn." in name:
            module = name.removesuffix(".weight")
            tensors[f"{module}.input_scale"] = torch.tensor([INPUT_SCALE])
            tensors[f"{module}.input_offset"] = torch.tensor([INPUT_OFFSET])
            bias = -INPUT_OFFSET * packed.double().sum(-1)
            tensors[f"{module}.quant_bias"] = bias.to(torch.int32)
            tensors[f"{module}.deq_scale"] = INPUT_SCALE * scale[:, 0]
    return tensors


def packed_spec(spec: ModelSpec, kind: Any) -> ModelSpec:
    static = [n for n in expected_tensors(spec) if is_matrix(n) and ".self_attn." in n]
    exceptions: dict[str, Any] = dict.fromkeys(static, "int8_static") if kind == "int8" else {}
    return msgspec.structs.replace(spec, quantization=QuantSpec(kind, exceptions))


def logits(spec: ModelSpec, kind: str, groups: Groups) -> torch.Tensor | None:
    model = load_model(packed_spec(spec, kind), packed_tensors(spec, kind), groups)
    session = Session(spec, model)
    session.cache = new_cache(spec, 128, ranks=groups.tensor.size)
    prompt = random_tokens(300, seed=3)
    with torch.inference_mode():
        return model.logits(session.hidden([(prompt, 0, session.blocks(len(prompt)))]))


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        groups = init_groups(rank, 2, f"file://{folder}/meeting", step_timeout_s=120)
        results = {
            (name, kind, by_id): logits(
                spec, kind, Groups(groups.tensor, groups.tensor if by_id else SoloGroup())
            )
            for name, spec in SPECS.items()
            for kind in FORMATS
            for by_id in (False, True)
        }
        torch.save(results, folder / f"logits-{rank}")
        close_groups()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    """Where int8 cuts columns each rank quantizes its own part of a token, so sums differ by
    rounding of 8 bits; everywhere else by that of fp32."""
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=one_rank, args=(rank, tmp_path), daemon=True) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    alone = {(n, k): logits(spec, k, Groups()) for n, spec in SPECS.items() for k in FORMATS}
    for process in ranks:
        process.join(180)
    errors = [path.read_text() for path in sorted(tmp_path.glob("error-*"))]
    assert not errors, errors[0]
    together = torch.load(tmp_path / "logits-0")
    for (name, kind, by_id), scores in together.items():
        expected = alone[name, kind]
        assert expected is not None
        if kind == "int8":  # rounding may choose another expert or block: not every row is close
            errors = (scores - expected).abs().amax(-1) / expected.abs().max()
            assert errors.median() < 0.05, (name, by_id)
        else:
            assert relative_error(scores, expected) < 1e-5, (name, kind, by_id)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("by_id", [False, True])
def test_ranks_hold_parts_of_the_whole(name: str, kind: str, by_id: bool) -> None:
    """Each packed value is held by some rank, unchanged; and bytes are those that were planned."""
    spec, tensors = packed_spec(SPECS[name], kind), packed_tensors(SPECS[name], kind)
    for rank in range(2):
        group = SoloGroup(rank, 2)
        groups = Groups(group, group if by_id else SoloGroup())
        model = load_model(spec, tensors, groups)
        held: dict[str, torch.Tensor] = {}
        for weight in matrices_of(model).values():
            for piece in weight.pieces():
                source = tensors[piece.source][piece.source_slice]
                if isinstance(piece.destination, torch.Tensor):
                    assert torch.equal(piece.destination, source.to(piece.destination.dtype))
                    storage = piece.destination.untyped_storage()
                    held[str(storage.data_ptr())] = storage
        planned = weight_bytes(spec, ranks=2, dtype="float32", expert_parallel=by_id)
        parts = ("attention", "index branch", "dense MLPs", "routed experts", "shared experts")
        total = sum(planned.get(part, 0) for part in parts)
        assert sum(storage.nbytes() for storage in held.values()) == total


CACHES: list[dict[str, Any]] = [
    {"kv_cache_dtype": "fp8"},
    {"kv_cache_dtype": "int8"},
    {"kv_cache_dtype": "bfloat16"},
    {"index_cache_dtype": "fp8"},
    {"kv_cache_dtype": "int8", "index_cache_dtype": "int8"},
]


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: "-".join(cache.values()))
def test_a_smaller_cache_changes_the_scores_a_little(
    toys: Path, arch: str, cache: dict[str, Any]
) -> None:
    """Log-probabilities of a prompt over several chunks, against those with an exact cache."""
    if arch == "m2" and "index_cache_dtype" in cache:
        with pytest.raises(SetupError, match="no index keys"):
            BareEngine(toys / arch, cache=CacheConfig(**cache))
        return
    rule = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1, prompt_logprobs=0)
    exact, rounded = (
        BareEngine(toys / arch, cache=CacheConfig(**fields)).run((PROMPTS[2], rule))[0]
        for fields in ({}, cache)
    )
    pairs = zip(exact.prompt_logprobs[1:], rounded.prompt_logprobs[1:], strict=True)
    errors = np.array([abs(one.logprob - other.logprob) for one, other in pairs])
    assert errors.max() > 0
    assert np.median(errors) < (0.2 if "fp8" in cache.values() else 0.05)


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_an_engine_runs_packed_parts_by_kernels_that_read_them(
    toys: Path,
    arch: str,
    cache: Any,
    native_library: None,  # noqa: F811
) -> None:
    """C++ for the weights and for a packed cache: the start says so, and the text is the same."""
    packed = toys / f"{arch}-mxfp8"
    config = CacheConfig(kv_cache_dtype=cache)
    expected = [
        output.new_token_ids
        for output in BareEngine(packed, cache=config).run(*((prompt, RULE) for prompt in PROMPTS))
    ]
    small = {"kv_cache_memory_bytes": 16 << 20, "max_model_len": 1024, "num_threads": 1}
    with LLM(str(packed), kv_cache_dtype=cache, **small) as llm:
        answers = llm.generate(PROMPTS, RULE)
        report = " ".join(llm.report)
    assert [answer.token_ids for answer in answers] == expected
    assert "C++" in report and "in torch" not in report
