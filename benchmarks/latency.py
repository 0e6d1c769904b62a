"""What disturbs a stream: the time between its tokens, alone and beside hostile company, and what
streaming itself adds to the time of a token.

    python benchmarks/latency.py http://127.0.0.1:8000 [--streams 4] [--tokens 200] [--out F.json]

Over HTTP, against any server of a model with tools. Company is one more client that sends its
request again and again, with few tokens to generate, so that reading, checking and following it
weighs most. What streaming adds is the time per token of a streamed answer less that of a whole
one, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from grammar import HOSTILE, SCHEMA
from host_step import commit, hardware
from load import percentile

TOOLS = [
    {
        "type": "function",
        "function": {"name": f"edit{number}", "description": "d" * 500, "parameters": SCHEMA},
    }
    for number in range(100)
]
COMPANY: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "a short chat": {},
    "a JSON Schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    },
    "100 tools, required": {"tools": TOOLS, "tool_choice": "required"},
    **{
        f"hostile grammar: {name}": {"structured_outputs": {"grammar": grammar}}
        for name, grammar in HOSTILE.items()
        if grammar.startswith("start: ") and "/" not in grammar
    },
}
COMPANY_TOKENS = 32
NUM_TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="a running server")
    parser.add_argument("--streams", type=int, default=4, help="answers that are watched")
    parser.add_argument("--tokens", type=int, default=200, help="tokens per answer")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    rows = asyncio.run(measured(options.url, options.streams, options.tokens))
    for row in rows:
        print("   ".join(f"{name} {value}" for name, value in row.items()))
    if options.out is not None:
        facts = {
            "what": "time between tokens",
            "commit": commit(),
            "hardware": hardware(),
            "python": platform.python_version(),
            "command": shlex.join(["python", *sys.argv]),
        }
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


async def measured(url: str, num_streams: int, num_tokens: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        await streamed(client, 0, num_tokens)  # what is lazy is paid for
        for name, fields in COMPANY.items():
            await accompany(client, fields, 0)  # its prompt is computed, its grammar tried
            company = asyncio.create_task(keep_company(client, fields))
            answers = (streamed(client, number, num_tokens) for number in range(num_streams))
            gaps_ms = [gap for gaps in await asyncio.gather(*answers) for gap in gaps]
            company.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await company
            rows.append(
                {
                    "beside": name,
                    "median_ms": round(statistics.median(gaps_ms), 2),
                    "p99_ms": round(percentile(gaps_ms, 0.99), 2),
                    "worst_ms": round(max(gaps_ms), 1),
                }
            )
        rows.append(await added_by_streaming(client, num_tokens))
    return rows


async def keep_company(client: httpx.AsyncClient, fields: dict[str, Any] | None) -> None:
    for number in itertools.count(1):
        await accompany(client, fields, number)


async def accompany(client: httpx.AsyncClient, fields: dict[str, Any] | None, number: int) -> None:
    if fields is None:
        await asyncio.sleep(0.1)
        return
    messages = [{"role": "user", "content": f"Request {number}."}]
    body = {"messages": messages, "max_tokens": COMPANY_TOKENS, "seed": number, **fields}
    answer = await client.post("/v1/chat/completions", json=body)
    # A grammar that meets its limits ends its own request, and nothing else.
    if answer.status_code not in (200, 400):
        raise RuntimeError(answer.text[:300])


async def streamed(client: httpx.AsyncClient, number: int, num_tokens: int) -> list[float]:
    """Milliseconds between the tokens of one answer, as they arrive."""
    arrivals_s: list[float] = []
    async with client.stream(
        "POST", "/v1/completions", json=body_of(number, num_tokens, stream=True)
    ) as answer:
        async for piece in answer.aiter_raw():
            arrivals_s += [time.perf_counter()] * piece.count(b'data: {"id"')
    return [1e3 * (b - a) for a, b in itertools.pairwise(arrivals_s)]


async def added_by_streaming(client: httpx.AsyncClient, num_tokens: int) -> dict[str, Any]:
    per_token_ms: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * NUM_TURNS):
        stream = bool(number % 2)
        begun_s = time.perf_counter()
        if stream:
            await streamed(client, number // 2, num_tokens)
        else:
            body = body_of(number // 2, num_tokens, stream=False)
            (await client.post("/v1/completions", json=body)).raise_for_status()
        per_token_ms[stream].append(1e3 * (time.perf_counter() - begun_s) / num_tokens)
    whole, stream_ms = (statistics.median(per_token_ms[stream]) for stream in (False, True))
    return {
        "whole_ms_per_token": round(whole, 3),
        "streamed_ms_per_token": round(stream_ms, 3),
        "added_ms": round(stream_ms - whole, 3),
    }


def body_of(number: int, num_tokens: int, *, stream: bool) -> dict[str, Any]:
    return {
        "prompt": [300 + number, 301, 302, 303],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "seed": number,
        "stream": stream,
    }


if __name__ == "__main__":
    main()
