"""Engine processes as the front end starts them: ready, refused, left alone, killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest

import mserve
from mserve.checkpoint import open_checkpoint
from mserve.core import (
    CacheConfig,
    CapacityError,
    CheckpointError,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    Request,
    SamplingParams,
    SchedulerConfig,
    SetupError,
)
from mserve.engine import ranks, startup
from mserve.engine.startup import start
from mserve.testing.toys import BareEngine, small_toy
from mserve.wire import (
    EngineLaunch,
    Failed,
    Loading,
    Outputs,
    Ready,
    Shutdown,
    SocketLink,
    Submit,
    encode_launch,
)

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=6)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small_toy(tmp_path_factory.mktemp("toys"), "m3")


def config_for(path, *, size=1, max_model_len=1024, cache_bytes=32 << 20, **model):
    return EngineConfig(
        model=ModelConfig(path=str(path), max_model_len=max_model_len, **model),
        cache=CacheConfig(kv_cache_memory_bytes=cache_bytes),
        scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=256),
        parallel=ParallelConfig(tensor_parallel_size=size),
        num_threads=1,
    )


class EngineProcess:
    """A real engine process and the front end's end of the wire to it."""

    def __init__(self, config):
        self.link = SocketLink()
        self.messages = asyncio.Queue()
        self.link.open(self.messages.put_nowait)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mserve.engine.main"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path(mserve.__file__).parents[1])},
        )
        launch = EngineLaunch(config, self.link.inbox, self.link.outbox)
        self.process.stdin.write(encode_launch(launch))
        self.process.stdin.flush()

    async def until(self, kind):
        """The first message of ``kind``, and all before it."""
        before = []
        while True:
            message = await asyncio.wait_for(self.messages.get(), PATIENCE_S)
            if isinstance(message, kind):
                return message, before
            before.append(message)

    async def exit_code(self):
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)

    def rank_processes(self):
        return psutil.Process(self.process.pid).children()


@contextlib.contextmanager
def engine_process(config):
    engine = EngineProcess(config)
    try:
        yield engine
    finally:
        engine.process.stdin.close()
        engine.process.kill()
        engine.process.wait()
        engine.link.close()


def test_it_loads_serves_and_shuts_down_when_told(checkpoint):
    prompt = np.random.default_rng(2).integers(0, 1000, 300).tolist()
    expected = BareEngine(checkpoint).run((prompt, GREEDY))[0].new_token_ids

    async def scenario():
        with engine_process(config_for(checkpoint)) as engine:
            ready, before = await engine.until(Ready)
            stages = list(dict.fromkeys(message.stage for message in before))
            assert all(isinstance(message, Loading) for message in before)
            assert stages == ["start", "checkpoint", "memory", "weights", "warmup"]
            assert (ready.max_model_len, ready.vocab_size, ready.max_num_seqs) == (1024, 1024, 8)
            assert any("blocks" in line for line in ready.report)

            # Only the front end decides when to end.
            engine.process.send_signal(signal.SIGTERM)
            engine.process.send_signal(signal.SIGINT)
            request = Request(request_id="a", prompt_token_ids=prompt, sampling=GREEDY)
            engine.link.send(Submit([request]))
            tokens, finished = [], None
            while finished is None:
                outputs, _ = await engine.until(Outputs)
                for output in outputs.outputs:
                    tokens += output.new_token_ids
                    finished = output.finish_reason
            assert tokens == expected
            assert outputs.stats.num_free_blocks == ready.num_blocks
            engine.link.send(Shutdown(0.0))
            assert await engine.exit_code() == 0

    asyncio.run(scenario())


def test_what_cannot_start_says_why_and_exits_with_2(tmp_path):
    async def scenario():
        with engine_process(config_for(tmp_path)) as engine:
            failed, _ = await engine.until(Failed)
            assert failed.code == CheckpointError.code
            assert "config.json" in failed.message
            assert await engine.exit_code() == 2

    asyncio.run(scenario())


def test_it_leaves_when_the_front_end_is_gone(checkpoint):
    async def scenario():
        with engine_process(config_for(checkpoint)) as engine:
            await engine.until(Ready)
            engine.process.stdin.close()
            assert await engine.exit_code() == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["rank 0", "rank 1"])
def test_all_ranks_end_with_any_of_them(checkpoint, victim):
    async def scenario():
        with engine_process(config_for(checkpoint, size=2)) as engine:
            await engine.until(Ready)
            (other,) = engine.rank_processes()
            psutil.Process(engine.process.pid if victim == "rank 0" else other.pid).kill()
            assert await engine.exit_code() != 0
            await asyncio.to_thread(psutil.wait_procs, [other], PATIENCE_S)
            assert not other.is_running()

    asyncio.run(scenario())


def test_a_rank_that_dies_at_start_is_reported(checkpoint, monkeypatch):
    def stillborn():
        return subprocess.Popen(
            [sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    monkeypatch.setattr(ranks, "_spawn", stillborn)
    with pytest.raises(SetupError, match="rank 1 is gone before it was ready"):
        start(config_for(checkpoint, size=2))


def test_the_ranks_meeting_place_stands_until_the_first_step_has_run(
    checkpoint, monkeypatch, tmp_path
):
    place = tempfile.TemporaryDirectory(dir=tmp_path)
    warm_up = startup._warm_up

    def watched_warm_up(*arguments, **options):
        warm_up(*arguments, **options)
        assert Path(place.name).is_dir()

    monkeypatch.setattr(startup, "rendezvous", lambda: place)
    monkeypatch.setattr(startup, "_warm_up", watched_warm_up)
    with start(config_for(checkpoint, size=2)):
        assert not Path(place.name).exists()


def test_closing_ends_the_other_ranks(checkpoint):
    before = set(psutil.Process().children())
    started = start(config_for(checkpoint, size=2))
    (other,) = set(psutil.Process().children()) - before
    started.close()
    started.close()
    assert not other.is_running()


def test_too_little_memory_names_the_context_that_fits(checkpoint):
    with pytest.raises(CapacityError) as refused:
        start(config_for(checkpoint, cache_bytes=1 << 20))
    assert "--max-model-len" in refused.value.hint


def test_a_device_that_is_not_there_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SetupError, match="no CUDA device"):
        start(config_for(checkpoint, device="cuda"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.norm.weight", "model.norm are damaged"),
        # The kernels are checked on one layer of a kind; what else is damaged, warm-up sees.
        ("model.layers.1.input_layernorm.weight", "not a finite number"),
    ],
)
def test_weights_that_compute_no_numbers_are_refused(tmp_path, name, words):
    path = small_toy(tmp_path, "m2")
    source = open_checkpoint(path).tensors[name]
    with source.file.open("r+b") as file:
        file.seek(source.offset)
        file.write(np.full(64, np.nan, np.float32).tobytes())
    with pytest.raises(CheckpointError, match=words):
        start(config_for(path))


def test_a_context_of_one_token_starts(checkpoint):
    started = start(config_for(checkpoint, max_model_len=1))
    assert started.ready.max_model_len == 1
    started.close()
