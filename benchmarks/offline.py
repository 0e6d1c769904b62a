"""Decode and prefill tokens/s of one process, beside llama.cpp's where its `llama-bench` is given.

    python benchmarks/offline.py checkpoints/m3-bench
    python benchmarks/offline.py checkpoints/m3-bench --llama-bench BIN --gguf FILE --out FILE

Both run with the same threads on the same weights, in turns, `--rounds` times; a figure is the
median over the rounds and every row is kept. Decoding starts at `--depth` tokens of context, which
are computed first and not counted. llama.cpp counts decoding without prompt, as we do by taking the
time of one token away.
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

ENVIRONMENT = dict(os.environ)  # before mserve changes how OpenMP waits, which would slow the peer

from mserve.core import SamplingParams  # noqa: E402
from mserve.llm import LLM  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    options = parse()
    rows: list[dict[str, float | str]] = []
    with LLM(
        str(options.checkpoint),
        num_threads=options.threads,
        max_model_len=options.depth + options.prefill + options.decode + 64,
        kv_cache_memory_bytes=4 << 30,
    ) as llm:
        rng = random.Random(0)
        measure(llm, rng, options)  # warms up
        for number in range(options.rounds):
            rows.append({"round": number, "engine": "mserve", **measure(llm, rng, options)})
            if options.llama_bench:
                rows.append({"round": number, "engine": "llama.cpp", **llama(options)})
            sys.stderr.write(f"round {number + 1} of {options.rounds} done\n")
    report = {
        "commit": run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "command": "python benchmarks/offline.py " + " ".join(sys.argv[1:]),
        "cores": os.cpu_count(),
        "medians": {
            engine: {
                what: statistics.median(row[what] for row in rows if row["engine"] == engine)
                for what in ("decode_tokens_per_s", "prefill_tokens_per_s")
            }
            for engine in dict.fromkeys(str(row["engine"]) for row in rows)
        },
        "rows": rows,
    }
    print(json.dumps(report["medians"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decode and prefill speed of one process.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--depth", type=int, default=0, help="tokens of context before the clock")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measure(llm: LLM, rng: random.Random, options: argparse.Namespace) -> dict[str, float]:
    def timed(prompt: list[int], num_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        start = time.perf_counter()
        llm.generate([prompt], [sampling])
        return time.perf_counter() - start

    def prompt(num_tokens: int) -> list[int]:
        return [rng.randrange(1000, 30000) for _ in range(num_tokens)]

    head = prompt(options.depth)
    if head:
        timed(head, 1)  # its blocks are found again below
    prefill_s = timed(head + prompt(options.prefill), 1)
    tail = head + prompt(16)
    once_s = timed(tail, 1)
    decode_s = timed(tail, options.decode + 1) - once_s
    return {
        "decode_tokens_per_s": options.decode / decode_s,
        "prefill_tokens_per_s": options.prefill / prefill_s,
    }


def llama(options: argparse.Namespace) -> dict[str, float]:
    shape = ["-p", str(options.prefill), "-n", str(options.decode), "-d", str(options.depth)]
    text = run(
        str(options.llama_bench), "-m", str(options.gguf), "-t", str(options.threads),
        "-fa", "on", "-r", "1", "-o", "json", *shape,
    )  # fmt: skip
    found = {"decode" if one["n_gen"] else "prefill": one["avg_ts"] for one in json.loads(text)}
    return {f"{what}_tokens_per_s": speed for what, speed in found.items()}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
