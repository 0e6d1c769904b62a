"""What is trained is what is served: one exported demo model, three opinions on its logits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM

from demo.export import export
from demo.model import DemoModel
from demo.shape import DemoShape
from mserve.core import SamplingParams
from mserve.llm import LLM
from mserve.testing.tiny_models import random_tokens, relative_error

SHAPE = DemoShape(vocab_size=4096, num_layers=4, topk_blocks=3)
LENGTHS = [5, 129, 700]  # below, just beyond one block, and where blocks are dropped


@pytest.fixture(scope="module")
def model():
    """Random, and nowhere at a value where a forgotten weight would not show."""
    model = DemoModel(SHAPE, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name or name.endswith("bias"):
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    export(model, folder, torch.float32)
    return folder


def trainer_logits(model, token_ids):
    run = model.begin(len(token_ids), dtype=torch.float32, sparse=True)
    with torch.no_grad():
        return model.logits(model.hidden(torch.tensor([token_ids]), run)[0], run)


@pytest.fixture(scope="module")
def theirs(folder, model):
    """transformers' model of the exported files."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    config = MiniMaxM3VLTextConfig(**text)
    theirs = MiniMaxM3VLForCausalLM(config)
    tensors = load_file(folder / "model-00001-of-00001.safetensors")
    theirs.load_state_dict(renamed(tensors, SHAPE))
    return theirs.eval()


def renamed(tensors, shape):
    """Published names to those inside transformers' text model."""
    tensors = {name.removeprefix("language_model."): value for name, value in tensors.items()}
    result = {}
    for name, value in tensors.items():
        if ".experts." in name or ".shared_experts." in name or ".mlp." in name:
            continue
        name = name.replace(".block_sparse_moe.e_score", ".mlp.gate.e_score")
        name = name.replace(".block_sparse_moe.", ".mlp.").replace(".index_", ".indexer.")
        result[name] = value
    for layer in range(shape.num_layers):
        place = f"model.layers.{layer}"
        if not shape.is_sparse(layer):
            add_mlp(result, tensors, f"{place}.mlp", f"{place}.mlp")
            continue
        source, target = f"{place}.block_sparse_moe", f"{place}.mlp"
        add_mlp(result, tensors, f"{source}.shared_experts", f"{target}.shared_experts")
        w1, w2, w3 = (
            torch.stack(
                [tensors[f"{source}.experts.{e}.{w}.weight"] for e in range(shape.num_experts)]
            )
            for w in ("w1", "w2", "w3")
        )
        result[f"{target}.experts.gate_up_proj"] = torch.cat([w1, w3], 1)
        result[f"{target}.experts.down_proj"] = w2
    return result


def add_mlp(result, tensors, source, target):
    gate, up = (tensors[f"{source}.{part}_proj.weight"] for part in ("gate", "up"))
    result[f"{target}.gate_up_proj.weight"] = torch.cat([gate, up])
    result[f"{target}.down_proj.weight"] = tensors[f"{source}.down_proj.weight"]


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal_transformers(model, theirs, length):
    token_ids = random_tokens(length, seed=length, vocab_size=4000)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    assert relative_error(trainer_logits(model, token_ids), expected) < 1e-5


def test_the_engine_scores_a_prompt_as_the_trainer_does(model, folder):
    prompts = [random_tokens(length, seed=length, vocab_size=4000) for length in LENGTHS]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    with LLM(
        str(folder), dtype="float32", max_model_len=1024, kv_cache_memory_bytes=1 << 26
    ) as llm:
        completions = llm.generate(prompts, sampling)
    for token_ids, completion in zip(prompts, completions, strict=True):
        scores = trainer_logits(model, token_ids).log_softmax(-1)
        assert completion.token_ids == [int(scores[-1].argmax())]
        for place, given in enumerate(completion.prompt_logprobs[1:]):
            assert given.logprob == pytest.approx(
                float(scores[place, token_ids[place + 1]]), abs=2e-4
            )
