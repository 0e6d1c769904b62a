"""Models of a size that the native kernels do not take: found before the load, served by torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mserve.core import SamplingParams, SetupError
from mserve.kernels import native, use_kernels
from mserve.kernels.native.bounds import (
    MAX_CHOSEN_BLOCKS,
    MAX_CHOSEN_EXPERTS,
    MAX_HEAD_WIDTH,
    MAX_INDEX_GROUPS,
    Sizes,
    beyond_bounds,
)
from mserve.llm import LLM
from mserve.testing.native import native_library  # noqa: F401 - a fixture
from mserve.toy import write_toy

SIZES: dict[str, Any] = {"seed": 3, "hidden_size": 64, "num_layers": 2, "vocab_size": 1024}
M3: dict[str, Any] = {"arch": "m3", "num_dense_layers": 1, "head_dim": 32, "index_head_dim": 32}
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=3)


@pytest.fixture(autouse=True)
def reference_afterwards() -> Iterator[None]:
    yield
    use_kernels("reference")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"arch": "m2", "head_dim": 33}, "heads of an even width, not 33"),
        (M3 | {"topk_blocks": 65}, "at most 64 chosen blocks per token, not 65"),
        (M3 | {"num_heads": 17, "num_kv_heads": 17}, "at most 16 KV groups .* not 17"),
        (
            {"arch": "m2", "num_experts": 66, "experts_per_token": 65, "intermediate_size": 32},
            "at most 64 experts per token, not 65",
        ),
    ],
)
def test_a_size_beyond_the_kernels_is_served_by_torch(
    tmp_path: Path,
    native_library: None,  # noqa: F811
    sizes: dict[str, Any],
    reason: str,
) -> None:
    write_toy(tmp_path / "toy", **(SIZES | sizes))
    small = {"kv_cache_memory_bytes": 16 << 20, "max_model_len": 256, "num_threads": 1}
    with LLM(str(tmp_path / "toy"), **small) as llm:
        (answer,) = llm.generate([[5, 6, 7]], GREEDY)
        report = "\n".join(llm.report)
    assert len(answer.token_ids) == 3
    assert re.search(f"kernels: torch reference.*{reason}", report)
    with pytest.raises(SetupError, match=reason):
        LLM(str(tmp_path / "toy"), deterministic=True, **small)


LARGEST = Sizes(
    head_widths=(MAX_HEAD_WIDTH, 2),
    experts_per_token=MAX_CHOSEN_EXPERTS,
    chosen_blocks=MAX_CHOSEN_BLOCKS,
    index_groups=MAX_INDEX_GROUPS,
)


def test_the_bounds_are_those_of_the_ops(native_library: None) -> None:  # noqa: F811
    """The largest sizes run and one more is refused, by each op that has a table for it."""
    assert beyond_bounds(LARGEST) is None
    hidden, bias = torch.randn(2, 8), torch.zeros(70)
    gate = torch.randn(70, 8)

    def route(count: int) -> torch.Tensor:
        return native.route(hidden, gate, bias, count, 1.0)[0]

    def select(blocks: int, groups: int) -> torch.Tensor:
        keys, table = torch.randn(70, 1, 128, 2), torch.arange(70)[None]
        positions = torch.tensor([[70 * 128 - 1]])
        rule = {"topk_blocks": blocks, "local_blocks": 1, "init_blocks": 0}
        return native.select_blocks(torch.randn(1, 1, groups, 2), keys, table, positions, **rule)

    assert route(MAX_CHOSEN_EXPERTS).shape == (2, MAX_CHOSEN_EXPERTS)
    assert (select(MAX_CHOSEN_BLOCKS, MAX_INDEX_GROUPS) >= 0).all()
    for op, sizes in (
        (route, (MAX_CHOSEN_EXPERTS + 1,)),
        (select, (MAX_CHOSEN_BLOCKS + 1, 1)),
        (select, (1, MAX_INDEX_GROUPS + 1)),
    ):
        with pytest.raises(native.NativeError):
            op(*sizes)
