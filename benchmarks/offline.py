"""Decode and prefill tokens/s of one process, beside llama.cpp's where its `llama-bench` is given.

    python benchmarks/offline.py checkpoints/m3-bench
    python benchmarks/offline.py checkpoints/m3-bench --llama-bench BIN --gguf FILE --out FILE

Both run with the same threads on the same weights, in turns, `--rounds` times; a figure is the
median over the rounds and every row is kept. Decoding starts at `--depth` tokens of context, which
are computed first and not counted. llama.cpp counts decoding without prompt, as we do by taking the
time of one token away.

`of read` is what decoding reads of the weights, in bytes/s, over the machine's read bandwidth as
measured between the rounds. A token reads every weight but the embedding's other rows and the
experts it was not sent to; keys and values are left out, so depth lowers it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import ENVIRONMENT, publish

from mserve.checkpoint import is_expert, open_checkpoint
from mserve.core import SamplingParams
from mserve.kernels import native, uninitialized
from mserve.llm import LLM

Row = dict[str, float | str]
READ_BYTES = 1 << 30


def main() -> None:
    options = parse()
    rows: list[Row] = []
    with LLM(
        str(options.checkpoint),
        num_threads=options.threads,
        max_model_len=options.depth + options.prefill + options.decode + 64,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        kv_cache_dtype=options.kv_cache_dtype,
    ) as llm:
        rng = random.Random(0)
        head = numbers(rng, options.depth)
        if options.depth == 0 or options.rounds > 1:
            measure(llm, rng, options, head)  # warms up
        for number in range(options.rounds):
            ours = {"read_bytes_per_s": read_bandwidth(), **measure(llm, rng, options, head)}
            rows.append({"round": number, "engine": "mserve", **ours})
            if options.llama_bench:
                rows.append({"round": number, "engine": "llama.cpp", **llama(options)})
            sys.stderr.write(f"round {number + 1} of {options.rounds} done\n")
    content = {**medians(rows, active_weight_bytes(options.checkpoint)), "rows": rows}
    publish(content, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decode and prefill speed of one process.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--depth", type=int, default=0, help="tokens of context before the clock")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=4 << 30)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def numbers(rng: random.Random, count: int) -> list[int]:
    """Token ids that are plain tokens in every vocabulary of the presets."""
    return [rng.randrange(1000, 8000) for _ in range(count)]


def measure(
    llm: LLM, rng: random.Random, options: argparse.Namespace, head: list[int]
) -> dict[str, float]:
    def timed(prompt: list[int], num_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        start = time.perf_counter()
        llm.generate([prompt], [sampling])
        return time.perf_counter() - start

    if head:
        timed(head, 1)  # its blocks are found again below
    prefill_s = timed(head + numbers(rng, options.prefill), 1)
    tail = head + numbers(rng, 16)
    once_s = timed(tail, 1)
    decode_s = timed(tail, options.decode + 1) - once_s
    return {
        "decode_tokens_per_s": options.decode / decode_s,
        "prefill_tokens_per_s": options.prefill / prefill_s,
    }


def read_bandwidth() -> float:
    """Bytes/s of reading memory that no cache holds: the best of a few, as a limit is."""
    memory = uninitialized((READ_BYTES // 2,), torch.bfloat16, torch.device("cpu")).fill_(1)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        native.read(memory)
        times.append(time.perf_counter() - start)
    return READ_BYTES / min(times)


def active_weight_bytes(path: Path) -> float:
    """Bytes of weights that one token reads."""
    checkpoint = open_checkpoint(path)
    moe = checkpoint.spec.moe
    chosen = moe.experts_per_token / moe.num_experts
    return sum(
        source.nbytes * (chosen if is_expert(name) else 1.0)
        for name, source in checkpoint.tensors.items()
        if name != "model.embed_tokens.weight"
    )


def medians(rows: list[Row], weight_bytes: float) -> dict[str, Any]:
    found: dict[str, dict[str, float]] = {}
    for engine in dict.fromkeys(str(row["engine"]) for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        figures = [name for name in own[0] if name not in ("round", "engine")]
        found[engine] = {
            name: statistics.median(float(row[name]) for row in own) for name in figures
        }
    ours = found["mserve"]
    ours["of_read"] = ours["decode_tokens_per_s"] * weight_bytes / ours["read_bytes_per_s"]
    return {"weight_bytes_per_token": weight_bytes, "medians": found}


def llama(options: argparse.Namespace) -> dict[str, float]:
    shape = ["-p", str(options.prefill), "-n", str(options.decode), "-d", str(options.depth)]
    text = run(
        str(options.llama_bench), "-m", str(options.gguf), "-t", str(options.threads),
        "-fa", "on", "-r", "1", "-o", "json", *shape,
    )  # fmt: skip
    found = {"decode" if one["n_gen"] else "prefill": one["avg_ts"] for one in json.loads(text)}
    return {f"{what}_tokens_per_s": speed for what, speed in found.items()}


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
