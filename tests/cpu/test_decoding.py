"""Recorded decoding against the runner's ordinary way, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mserve.checkpoint import open_checkpoint
from mserve.core import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SamplingParams,
    SetupError,
)
from mserve.engine.load import use_threads
from mserve.kernels import native
from mserve.testing.toys import BareEngine, small_toy
from mserve.toy import write_toy

LENGTHS = (1, 127, 128, 300, 20, 700, 2, 260)


@pytest.fixture(scope="module", params=["m2", "m3"])
def checkpoint(request, tmp_path_factory):
    return small_toy(tmp_path_factory.mktemp("toys"), request.param)


def rule(number, **fields):
    """Greedy or drawn, and by itself or with what the tape does not do."""
    drawn = {"temperature": 0.0} if number % 2 else {"temperature": 0.8, "top_p": 0.9}
    beyond = ({}, {"logprobs": 2}, {"repetition_penalty": 1.2}, {"top_k": 30})[number // 2 % 4]
    return SamplingParams(**drawn | beyond, seed=number, ignore_eos=True, **fields)


def work():
    draw = np.random.default_rng(1)
    return [
        (draw.integers(0, 1000, length).tolist(), rule(number, max_tokens=4 + 3 * number))
        for number, length in enumerate(LENGTHS)
    ]


def given(output):
    return output.new_token_ids, [(entry.logprob, entry.top) for entry in output.logprobs or ()]


def test_recorded_steps_give_the_bits_of_computed_ones(checkpoint):
    recorded, computed = BareEngine(checkpoint), BareEngine(checkpoint)
    computed.runner._decoding = None
    outputs = recorded.run(*work())
    assert len(recorded.runner._decoding._recorded) >= len(LENGTHS) - 1  # rows ended one by one
    assert list(map(given, outputs)) == list(map(given, computed.run(*work())))


def test_steps_beyond_the_most_tapes_are_recorded_anew(checkpoint, monkeypatch):
    monkeypatch.setattr("mserve.runner.decoding._MOST_TAPES", 2)
    engine = BareEngine(checkpoint)
    first = engine.run(*work())
    assert len(engine.runner._decoding._recorded) == 2
    assert list(map(given, engine.run(*work()))) == list(map(given, first))


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_a_request_has_the_same_bits_alone_and_in_any_batch(arch, tmp_path):
    write_toy(
        tmp_path / arch, arch=arch, num_layers=3, seed=3, hidden_size=64, num_dense_layers=1,
        head_dim=32, index_head_dim=32, topk_blocks=2, vocab_size=1024, dtype="bfloat16",
    )  # fmt: skip
    together = BareEngine(tmp_path / arch).run(*work())
    for request, output in list(zip(work(), together, strict=True))[::3]:
        (alone,) = BareEngine(tmp_path / arch).run(request)
        assert given(alone) == given(output)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"cache": CacheConfig(kv_cache_dtype="int8")}, None),
        ({"parallel": ParallelConfig(tensor_parallel_size=2)}, "one rank"),
    ],
)
def test_deterministic_is_promised_only_where_it_holds(checkpoint, change, reason):
    config = EngineConfig(model=ModelConfig(path=str(checkpoint)), deterministic=True, **change)
    start = (config, open_checkpoint(checkpoint), torch.device("cpu"), 1)
    if reason is None:
        assert use_threads(*start).batch_invariant
    else:
        with pytest.raises(SetupError, match=reason):
            use_threads(*start)


def test_deterministic_is_refused_without_native_kernels(checkpoint, monkeypatch):
    monkeypatch.setattr("mserve.kernels.choose.native.library", unavailable)
    config = EngineConfig(model=ModelConfig(path=str(checkpoint)), deterministic=True)
    with pytest.raises(SetupError, match="native kernels for everything"):
        use_threads(config, open_checkpoint(checkpoint), torch.device("cpu"), 1)


def unavailable():
    raise native.NativeUnavailable("not built")
