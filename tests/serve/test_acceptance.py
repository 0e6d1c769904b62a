"""What the release promises, at once: one long real prompt beside many short ones, clients that
leave, and one greedy text whichever way it is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from mserve.cli.chat_server import started
from mserve.text import load_tokenizer
from mserve.toy import write_toy

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = ["--dtype", "float32", "--kv-cache-memory-bytes", "256M", "--max-model-len", "16384"]
LONG_PROMPT_TOKENS = 5000
NUM_SHORT = 16
ANSWER_TOKENS = 12


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """M3-shaped, choosing 4 blocks of the 40 and more that the long prompt has."""
    folder = tmp_path_factory.mktemp("toys") / "acceptance"
    shapes = {"hidden_size": 64, "num_layers": 3, "vocab_size": 4096, "topk_blocks": 4}
    write_toy(folder, arch="m3", seed=7, max_position_embeddings=16384, **shapes)
    return folder


@pytest.fixture(scope="module", autouse=True)
def children_find_the_package() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        yield


@pytest.fixture(scope="module")
def url(toy: Path) -> Iterator[str]:
    with started(toy, BLOCKS, lambda stage, fraction: None) as server:
        yield server.url


@pytest.fixture(scope="module")
def long_prompt(toy: Path) -> str:
    """Some more than LONG_PROMPT_TOKENS tokens of this repository's own pages."""
    pages = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    text = "\n\n".join(page.read_text() for page in pages)[: 6 * LONG_PROMPT_TOKENS]
    assert len(load_tokenizer(toy).encode(text, add_special_tokens=False)) > LONG_PROMPT_TOKENS
    return text


async def stream(client: httpx.AsyncClient, prompt: str, leave_after: int | None = None) -> str:
    """The text of a greedy answer, or of its first ``leave_after`` pieces."""
    body = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True}
    if leave_after is not None:
        body |= {"max_tokens": 4000, "ignore_eos": True}
    pieces: list[str] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                pieces += [choice["text"] for choice in chunk["choices"]]
            if leave_after is not None and len(pieces) >= leave_after:
                break
    return "".join(pieces)


def metric(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(name + "{"):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"/metrics has no {name}")


def test_a_long_prompt_beside_short_streams_of_which_half_leave(url: str, long_prompt: str) -> None:
    shorts = [f"Question {number}: what is a block?" for number in range(NUM_SHORT)]

    async def run() -> tuple[str, list[str]]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            whole = asyncio.create_task(stream(client, long_prompt))
            answers = await asyncio.gather(
                *(
                    stream(client, short, leave_after=3 if number % 2 else None)
                    for number, short in enumerate(shorts)
                )
            )
            return await whole, answers

    async def settled() -> None:
        async with asyncio.timeout(10):
            while metric(url, "vllm:num_requests_running") or metric(
                url, "vllm:num_requests_waiting"
            ):
                await asyncio.sleep(0.05)

    long_answer, answers = asyncio.run(run())
    asyncio.run(settled())
    assert metric(url, "vllm:kv_cache_usage_perc") == 0

    # The same questions, one at a time, have the same answers.
    async def alone(prompt: str) -> str:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            return await stream(client, prompt)

    assert asyncio.run(alone(long_prompt)) == long_answer
    for number in range(0, NUM_SHORT, 4):
        assert asyncio.run(alone(shorts[number])) == answers[number]
    assert all(answers)


def generate(toy: Path, prompts: list[Any], folder: Path, *flags: str) -> list[dict[str, Any]]:
    """The answers of ``mserve generate`` in a process of its own."""
    folder.mkdir()
    (folder / "in.json").write_text(json.dumps(prompts))
    command = [sys.executable, "-m", "mserve.cli.main", "generate", str(toy)]
    command += ["--prompts", str(folder / "in.json"), "--output", str(folder / "out.json")]
    command += ["--max-tokens", str(ANSWER_TOKENS), "--temperature", "0", "--ignore-eos"]
    done = subprocess.run(
        [*command, *BLOCKS, *flags], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    return answers


def test_one_greedy_text_from_every_way_of_asking(
    toy: Path, url: str, long_prompt: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(toy)
    long_ids = tokenizer.encode(long_prompt, add_special_tokens=False)[
        : 128 * 9 + 17
    ]  # more blocks than are chosen
    prompts: list[Any] = ["The scheduler plans a step", long_ids]

    offline = generate(toy, prompts, tmp_path / "offline")
    two_ranks = generate(toy, prompts, tmp_path / "ranks", "--tensor-parallel-size", "2")
    assert [one["token_ids"] for one in two_ranks] == [one["token_ids"] for one in offline]
    assert [one["text"] for one in two_ranks] == [one["text"] for one in offline]

    for prompt, answer in zip(prompts, offline, strict=True):
        body = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        reply = httpx.post(f"{url}/v1/completions", json={**body, "ignore_eos": True}, timeout=120)
        assert reply.json()["choices"][0]["text"] == answer["text"]

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForImageTextToText.from_pretrained(toy, dtype=torch.float32)
    for prompt, answer in zip(prompts, offline, strict=True):
        ids = (
            prompt
            if isinstance(prompt, list)
            else tokenizer.encode(prompt, add_special_tokens=False)
        )
        with torch.no_grad():
            told = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=ANSWER_TOKENS,
                min_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert told[0, len(ids) :].tolist() == answer["token_ids"]
