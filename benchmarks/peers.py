"""Several servers under one load, in turns: output tokens/s, TTFT and TPOT over HTTP.

    python benchmarks/peers.py --streams 1,16 \\
        --server 'mserve=mserve serve checkpoints/m3-bench --port {port}' \\
        --server 'llama.cpp=llama-server -m m3-bench.gguf -np 16 -c 16384 --port {port}'

Each server is started by its command, with a port of ours for `{port}`, and is stopped as a process
while it is not its turn, so that one never runs beside another. A round gives every server every
level once, after a short request that pays for what is lazy; a figure is the median over the
rounds, every request is kept, and ratios are against the first server named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from load import Load, as_json, run, summarise
from record import ENVIRONMENT, RESULTS, commit, machine, slug, without_folders

START_LIMIT_S = 600.0
COLUMNS = {
    "output_tokens_per_s": "output tokens/s",
    "prefill_tokens_per_s": "prompt tokens / TTFT",
    "ttft_ms_median": "TTFT ms",
    "tpot_ms_median": "TPOT ms",
}


@dataclass(frozen=True)
class Server:
    """A started server. It computes only inside ``turn``."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)


def main() -> None:
    options = parse()
    # Stopped servers outlive what only kills this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    levels = [int(streams) for streams in options.streams.split(",")]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(started(spec, options)) for spec in options.server]
        for number in range(options.rounds):
            for streams in levels:
                for server in servers:
                    with server.turn():
                        row = measure(server, streams, number, options)
                    rows.append(row)
                    sys.stderr.write(
                        f"round {number + 1}, {streams} streams, {server.name}: "
                        f"{row['output_tokens_per_s']:.1f} tokens/s\n"
                    )
    write(rows, levels, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Several servers under one load, in turns.")
    parser.add_argument("--server", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--requests-per-stream", type=int, default=2)
    parser.add_argument("--label", required=True, help="for the files' name: model and format")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


@contextlib.contextmanager
def started(spec: str, options: argparse.Namespace) -> Iterator[Server]:
    """The server of ``NAME=COMMAND``, ready and stopped. Raises ``RuntimeError`` if it ends."""
    name, _, words = spec.partition("=")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"peer-{slug({'gpu': name})}.log").open("wb") as log:
        process = subprocess.Popen(
            shlex.split(words.replace("{port}", str(port))),
            stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        server = Server(name, f"http://127.0.0.1:{port}", process)
        try:
            wait_until_ready(server)
            with server.turn():
                pass
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    Path(log.name).unlink()


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{server.name} did not become ready; its log lies in the results folder")


def measure(
    server: Server, streams: int, number: int, options: argparse.Namespace
) -> dict[str, Any]:
    model = httpx.get(f"{server.url}/v1/models").raise_for_status().json()["data"][0]["id"]
    asyncio.run(run(server.url, model, Load(1, 1, 32, 8, seed=1000 + number)))
    load = Load(
        streams,
        streams * options.requests_per_stream,
        options.prompt_tokens,
        options.output_tokens,
        seed=100 * number + streams,
    )
    requests = asyncio.run(run(server.url, model, load))
    ended_s = max(request.ended_s for request in requests)
    return {
        "server": server.name,
        "round": number,
        "streams": streams,
        "output_tokens_per_s": sum(request.output_tokens for request in requests) / ended_s,
        **summarise(requests),
        "rows": as_json(requests),
    }


def write(rows: list[dict[str, Any]], levels: list[int], options: argparse.Namespace) -> None:
    found = machine()
    date = datetime.date.today().isoformat()
    stem = options.out / f"peers-{options.label}_{slug(found)}_{date}"
    split = [spec.partition("=") for spec in options.server]
    commands = {name: without_folders(words) for name, _, words in split}
    report = {"commit": commit(), "machine": found, "servers": commands, "rows": rows}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        f"# {options.label}: servers in turns, {date}",
        "",
        f"commit {report['commit']}; {', '.join(value for value in found.values() if value)}; "
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens, "
        f"{options.requests_per_stream} requests per stream, medians of {options.rounds} rounds",
        "",
        "| streams | server | " + " | ".join(COLUMNS.values()) + " | first / this |",
        "|--:|---|" + "--:|" * (len(COLUMNS) + 1),
    ]
    for streams in levels:
        first = None
        for name in commands:
            own = [row for row in rows if (row["server"], row["streams"]) == (name, streams)]
            middle = {key: statistics.median(row[key] for row in own) for key in COLUMNS}
            speed = middle["output_tokens_per_s"]
            first = first or speed
            cells = " | ".join(f"{value:.4g}" for value in middle.values())
            lines.append(f"| {streams} | {name} | {cells} | {first / speed:.2f} |")
    table = "\n".join(lines) + "\n"
    stem.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
