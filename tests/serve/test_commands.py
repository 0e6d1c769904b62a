"""The commands together, over a real engine: what they print is what the server says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mserve.cli.chat_server import served
from mserve.core import SetupError
from mserve.toy import write_toy

FLAGS = ["--dtype", "float32", "--kv-cache-memory-bytes", "32M", "--num-threads", "1"]
PROMPTS = ["The block is", [5, 6, 7, 8]]
TOKENS = 6


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
    with served(toy, FLAGS, lambda stage, fraction: stages.append(stage)) as address:
        yield address
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
        served(tmp_path, [], lambda stage, fraction: None),
    ):
        pass
