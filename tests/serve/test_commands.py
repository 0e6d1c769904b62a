"""The commands together, over a real engine: what they print is what the server says."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mserve.capacity import plan_memory, read_machine
from mserve.checkpoint import convert_on_load, open_checkpoint
from mserve.cli.chat_server import started
from mserve.cli.main import run
from mserve.core import CacheConfig, EngineConfig, ModelConfig, SetupError, blocks_for
from mserve.toy import write_toy

FLAGS = ["--dtype", "float32", "--kv-cache-memory-bytes", "32M", "--num-threads", "1"]
PROMPTS = ["The block is", [5, 6, 7, 8]]
TOKENS = 6
WAITS_BESIDE_A_SERVER = """\
import sys, time
from pathlib import Path
from mserve.cli.chat_server import started
with started(Path(sys.argv[1]), sys.argv[2:], lambda stage, fraction: None) as server:
    print(server.url, flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "small"
    write_toy(
        folder, arch="m3", hidden_size=64, vocab_size=2048, max_position_embeddings=2048, seed=3
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def children_find_the_package() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture(scope="module")
def url(toy: Path) -> Iterator[str]:
    stages: list[str] = []
    with started(toy, FLAGS, lambda stage, fraction: stages.append(stage)) as server:
        yield server.url
    assert_nobody_listens(server.url)


def assert_nobody_listens(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5).close()


def mserve(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mserve.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_generate_and_http_give_the_same_greedy_text(toy: Path, url: str, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "in.json", tmp_path / "out.json"
    prompts.write_text(json.dumps(PROMPTS))
    flags = ["--dtype", "float32", "--kv-cache-memory-bytes", "32M", "--temperature", "0"]
    flags += ["--max-tokens", str(TOKENS), "--ignore-eos", "--logprobs", "0"]
    done = mserve("generate", str(toy), "--prompts", str(prompts), "--output", str(answers), *flags)
    assert done.returncode == 0, done.stderr
    offline = json.loads(answers.read_text())
    for prompt, answer in zip(PROMPTS, offline, strict=True):
        body = {"model": "small", "prompt": prompt, "temperature": 0, "max_tokens": TOKENS}
        reply = httpx.post(f"{url}/v1/completions", json={**body, "ignore_eos": True}, timeout=60)
        assert reply.json()["choices"][0]["text"] == answer["text"]
        assert answer["finish_reason"] == "length"
        assert len(answer["token_ids"]) == len(answer["logprobs"]) == TOKENS
        assert [one["token_id"] for one in answer["logprobs"]] == answer["token_ids"]


def needed_bytes(toy: Path, **flags: Any) -> int:
    """Memory with which one request of the longest context just fits."""
    cache = CacheConfig(**{k: v for k, v in flags.items() if k != "quantization"})
    model = ModelConfig(path=str(toy), quantization=flags.get("quantization"))
    spec = open_checkpoint(toy).spec
    if model.quantization is not None:
        spec = convert_on_load(spec, model.quantization)
    config = EngineConfig(model=model, cache=cache)
    plan = plan_memory(spec, config, 1 << 40, 1, native_threads=1)
    blocks = plan.block_bytes * blocks_for(plan.max_model_len)
    return plan.weight_bytes + plan.activation_bytes + plan.logits_bytes + blocks


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--quantization", "int8"], {"quantization": "int8"}),
        (["--kv-cache-dtype", "int8"], {"kv_cache_dtype": "int8"}),
        (["--index-cache-dtype", "fp8"], {"index_cache_dtype": "fp8"}),
    ],
)
def test_generate_takes_what_fits_only_when_it_is_made_smaller(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    settings: dict[str, Any],
) -> None:
    budget_bytes = (needed_bytes(toy, **settings) + needed_bytes(toy)) // 2
    machine = msgspec.structs.replace(
        read_machine(),
        available_bytes=math.ceil(budget_bytes / CacheConfig().memory_utilization),
        cpu_quota=1.0,
    )
    for place in ("mserve.capacity.read_machine", "mserve.engine.startup.read_machine"):
        monkeypatch.setattr(place, lambda: machine)
    prompts, answers = tmp_path / "in.json", tmp_path / "out.json"
    prompts.write_text(json.dumps(PROMPTS))
    command = ["generate", str(toy), "--prompts", str(prompts), "--output", str(answers)]
    command += ["--max-tokens", "2"]
    assert run(command) == 2
    assert "are left beside weights and a step" in capsys.readouterr().err
    assert run([*command, *flags]) == 0, capsys.readouterr().err
    assert len(json.loads(answers.read_text())) == len(PROMPTS)


def test_quantizing_before_and_while_loading_give_the_same_answers(
    toy: Path, tmp_path: Path
) -> None:
    packed, prompts = tmp_path / "packed", tmp_path / "in.json"
    done = mserve("quantize", str(toy), str(packed), "--format", "mxfp8")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    prompts.write_text(json.dumps(PROMPTS))
    flags = ["--temperature", "0", "--max-tokens", str(TOKENS), "--ignore-eos"]
    flags += [
        "--kv-cache-memory-bytes",
        "32M",
        "--kv-cache-dtype",
        "fp8",
        "--prompts",
        str(prompts),
    ]
    answers = []
    for checkpoint, more in ((packed, []), (toy, ["--quantization", "mxfp8"])):
        out = tmp_path / f"{checkpoint.name}.json"
        done = mserve("generate", str(checkpoint), "--output", str(out), *flags, *more)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(out.read_text()))
    assert answers[0] == answers[1]


def test_what_cannot_be_quantized_is_refused(toy: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert mserve("quantize", str(toy), str(packed), "--format", "int8").returncode == 0
    for arguments, named in (
        (
            ["quantize", str(packed), str(tmp_path / "again"), "--format", "fp8"],
            "quantized already",
        ),
        (["quantize", str(toy), str(packed), "--format", "fp8"], "not an empty folder"),
        (["serve", str(packed), "--quantization", "fp8"], "int8 already"),
        (["serve", str(toy), "--quantization", "fp8", "-tp", "2"], "would cut"),
    ):
        done = mserve(*arguments)
        assert done.returncode == 2
        assert named in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 5
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("piped", [False, True])
def test_one_shot_chat_prints_the_answer_and_nothing_else(url: str, piped: bool) -> None:
    question = "Hello there"
    flags = ["--temperature", "0", "--max-tokens", str(TOKENS)]
    if piped:
        done = mserve("chat", url, *flags, stdin=question)
    else:
        done = mserve("chat", url, *flags, "-m", question, stdin="not read")
    assert (done.returncode, done.stderr) == (0, "")
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert done.stdout == reply["choices"][0]["message"]["content"] + "\n"


def test_a_refused_question_exits_2(url: str) -> None:
    done = mserve("chat", url, "--temperature", "9", "-m", "hi")
    assert done.returncode == 2
    assert "temperature" in done.stderr
    assert len(done.stderr.splitlines()) <= 5


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OtherModel"]}')
    with (
        pytest.raises(SetupError, match="OtherModel"),
        started(tmp_path, [], lambda stage, fraction: None),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_with_its_starter(toy: Path, number: signal.Signals) -> None:
    line = [sys.executable, "-c", WAITS_BESIDE_A_SERVER, str(toy), *FLAGS]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        address = starter.stdout.readline().strip()
        starter.send_signal(number)
        assert starter.wait(60) == 128 + number
    assert_nobody_listens(address)


def test_a_server_that_ends_meanwhile_says_how(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            children.append(self)

    monkeypatch.setattr("mserve.cli.chat_server.subprocess.Popen", Kept)
    with started(toy, FLAGS, lambda stage, fraction: None) as server:
        server.check()
        children[0].kill()
        with pytest.raises(SetupError, match=r"^signal 9 ended the server\n(.*\n)+try: curl"):
            server.check()


@pytest.mark.parametrize("flags", [["--port", "9999"], ["--host=::1"]])
def test_the_address_of_a_server_for_the_meantime_is_not_chosen(
    toy: Path, flags: list[str]
) -> None:
    done = mserve("chat", str(toy), "-m", "hi", "--", *flags)
    assert done.returncode == 2
    assert f"{flags[0].partition('=')[0]} cannot be chosen" in done.stderr
