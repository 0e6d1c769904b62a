"""Decode and prefill tokens/s, TTFT and TPOT over HTTP, at several numbers of streams.

    python benchmarks/serve.py                          a server for each bench preset
    python benchmarks/serve.py --presets m3-bench -- --dtype bfloat16
    python benchmarks/serve.py --url http://127.0.0.1:8000 --hardware h200

Each level is a closed loop (``load.py``). Prefill is measured apart: one stream, a long prompt, one
token out. What follows ``--`` goes to ``mserve serve``. Written to ``benchmarks/results``: a JSON
file with every request, and a Markdown table that names commit, hardware and command.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from load import Load, as_json, run, summarise
from record import RESULTS, ROOT, command, commit, machine, mserve, slug

from mserve.cli.chat_server import Server, started

COLUMNS = {
    "streams": "streams",
    "decode_tokens_per_s": "decode tokens/s",
    "ttft_ms_median": "TTFT ms, median",
    "ttft_ms_p90": "TTFT ms, p90",
    "tpot_ms_median": "TPOT ms, median",
    "tpot_ms_p90": "TPOT ms, p90",
}


def main() -> None:
    options = parse()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": command(),
        "machine": machine(),
        "targets": {},
    }
    hardware = options.hardware or slug(report["machine"])
    for name, target in targets(options):
        with target as server:
            report["targets"][name] = measure(server.url, options)
    stem = f"serve_{hardware}_{report['date']}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    table = render(report, options)
    (options.out / f"{stem}.md").write_text(table)
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a server over HTTP.")
    parser.add_argument("--url", help="a running server instead of one started here")
    parser.add_argument("--presets", default="m2-bench,m3-bench", help="toys to make and serve")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests-per-stream", type=int, default=2)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--prefill-requests", type=int, default=3)
    parser.add_argument("--hardware", help="short name for the files; default: the processor's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    options.serve_flags = arguments[cut + 1 :]
    return options


def targets(
    options: argparse.Namespace,
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Server]]]:
    """(name, context that yields a server) of everything to measure."""
    if options.url:
        yield options.url, contextlib.nullcontext(Server(options.url))
        return
    for preset in options.presets.split(","):
        checkpoint = options.checkpoints / preset
        if not (checkpoint / "config.json").exists():
            mserve("toy", str(checkpoint), "--preset", preset)
        yield preset, started(checkpoint, options.serve_flags, lambda stage, fraction: None)


def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Prefill alone, then each number of streams. A short request first pays for what is lazy."""
    model = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"]
    asyncio.run(run(url, model, Load(1, 1, 32, 8, seed=0)))
    prefill = Load(1, options.prefill_requests, options.prefill_tokens, 1, seed=1)
    rows = asyncio.run(run(url, model, prefill))
    result: dict[str, Any] = {
        "model": model,
        "prefill": {**summarise(rows), "rows": as_json(rows)},
        "levels": [],
    }
    for number, streams in enumerate(int(count) for count in options.streams.split(",")):
        load = Load(
            streams,
            streams * options.requests_per_stream,
            options.prompt_tokens,
            options.output_tokens,
            seed=100 + number,
        )
        rows = asyncio.run(run(url, model, load))
        result["levels"].append({"streams": streams, **summarise(rows), "rows": as_json(rows)})
        print(f"{url}: {streams} streams done", file=sys.stderr)
    return result


def render(report: dict[str, Any], options: argparse.Namespace) -> str:
    machine_lines = [f"- {name}: {value}" for name, value in report["machine"].items() if value]
    lines = [
        f"# Serving over HTTP, {report['date']}",
        "",
        f"- commit: {report['commit']}",
        f"- command: `{report['command']}`",
        *machine_lines,
        f"- each request: {options.prompt_tokens} prompt tokens, {options.output_tokens} output "
        f"tokens, {options.requests_per_stream} requests per stream; "
        f"prefill: {options.prefill_tokens} prompt tokens, one stream",
    ]
    for name, result in report["targets"].items():
        lines += [
            "",
            f"## {name}",
            "",
            f"Prefill: {result['prefill']['prefill_tokens_per_s']:.0f} tokens/s "
            f"(TTFT {result['prefill']['ttft_ms_median']:.0f} ms).",
            "",
            "| " + " | ".join(COLUMNS.values()) + " |",
            "|" + "--:|" * len(COLUMNS),
        ]
        for level in result["levels"]:
            cells = [f"{level[column]:.4g}" for column in COLUMNS]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
