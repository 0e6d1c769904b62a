"""A closed-loop load on ``/v1/completions``: so many streams, each sending its next request when
its last one has ended.

Prompts are random token ids, no two alike, so that the prefix cache never helps and no tokenizer
is measured. Knows HTTP and clocks; does not know which server answers or how results are written.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import httpx

# Ids that are plain tokens in every vocabulary of the family, special ones being at its end.
_PLAIN_IDS = range(256, 8192)


@dataclass(frozen=True)
class Load:
    """One level: what is sent, and by how many at once."""

    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One finished request. Times are seconds since the level began."""

    sent_s: float
    first_s: float
    ended_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first."""
        return (self.ended_s - self.first_s) / max(1, self.output_tokens - 1)


async def run(url: str, model: str, load: Load) -> list[Row]:
    """Send ``load`` and return a row per request, in order of ending. Raises ``RuntimeError`` on
    any answer that is not complete: a failed request would make the rest look fast."""
    numbers = random.Random(load.seed)
    prompts = [
        [numbers.choice(_PLAIN_IDS) for _ in range(load.prompt_tokens)]
        for _ in range(load.requests)
    ]
    rows: list[Row] = []
    # A connection each: a server may close one that was kept while the next request leaves.
    limits = httpx.Limits(max_connections=load.streams, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        began = time.perf_counter()

        async def stream() -> None:
            while prompts:
                rows.append(await _one(client, model, prompts.pop(), load.output_tokens, began))

        async with asyncio.TaskGroup() as group:
            for _ in range(load.streams):
                group.create_task(stream())
    return rows


async def _one(
    client: httpx.AsyncClient, model: str, prompt: list[int], output_tokens: int, began: float
) -> Row:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter()
    first: float | None = None
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()[:300]}")
        async for line in _lines(answer):
            field, _, payload = line.partition(b":")
            if field != b"data" or payload.strip() == b"[DONE]":  # comments are signs of life
                continue
            event = json.loads(payload)
            if error := event.get("error"):
                raise RuntimeError(str(error.get("message")))
            if event.get("choices"):
                first = first or time.perf_counter()
            usage = event.get("usage") or usage
    ended = time.perf_counter()
    if usage.get("completion_tokens") != output_tokens:
        raise RuntimeError(f"asked for {output_tokens} tokens, usage is {usage}")
    return Row(
        sent_s=sent - began,
        first_s=(first or ended) - began,
        ended_s=ended - began,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        output_tokens=usage["completion_tokens"],
    )


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """As a stream of events has them; httpx also ends lines at characters of the text."""
    begun = b""
    async for piece in answer.aiter_bytes():
        *whole, begun = (begun + piece).split(b"\n")
        for line in whole:
            yield line


def summarise(rows: list[Row]) -> dict[str, float]:
    """Figures of one level. ``decode_tokens_per_s`` counts what all streams together got between
    the first token of the first answer and the end of the last, prompts of later requests
    included: what a server delivers, not what a kernel could."""
    first = min(row.first_s for row in rows)
    last = max(row.ended_s for row in rows)
    generated = sum(row.output_tokens for row in rows)
    return {
        "decode_tokens_per_s": generated / (last - first) if last > first else 0.0,
        "prefill_tokens_per_s": statistics.median(row.prompt_tokens / row.ttft_s for row in rows),
        "ttft_ms_median": 1e3 * statistics.median(row.ttft_s for row in rows),
        "ttft_ms_p90": 1e3 * percentile([row.ttft_s for row in rows], 0.9),
        "tpot_ms_median": 1e3 * statistics.median(row.tpot_s for row in rows),
        "tpot_ms_p90": 1e3 * percentile([row.tpot_s for row in rows], 0.9),
    }


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least ``fraction`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def as_json(rows: list[Row]) -> list[dict[str, float]]:
    return [asdict(row) for row in rows]
