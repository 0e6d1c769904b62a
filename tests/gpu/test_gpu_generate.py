"""The same greedy tokens on a GPU as on the CPU, for both architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from mserve.core import SamplingParams
from mserve.llm import LLM
from mserve.toy import write_toy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

BLOCKS_BYTES = 128 << 20


def greedy(toy: Path, device: Literal["cpu", "cuda"]) -> list[list[int]]:
    """12 tokens for each of three prompts, one of them long enough that selection drops blocks."""
    prompts = [[number % 1000 for number in range(7, 7 + length)] for length in (1, 129, 1500)]
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    with LLM(str(toy), device=device, dtype="float32", kv_cache_memory_bytes=BLOCKS_BYTES) as llm:
        return [completion.token_ids for completion in llm.generate(prompts, sampling)]


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_a_gpu_gives_the_tokens_of_the_cpu(arch: str, tmp_path: Path) -> None:
    write_toy(tmp_path / arch, arch=arch, vocab_size=2048, max_position_embeddings=2048, seed=5)
    assert greedy(tmp_path / arch, "cuda") == greedy(tmp_path / arch, "cpu")
