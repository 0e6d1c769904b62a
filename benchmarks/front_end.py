"""What streaming costs the front end: many answers at once, from engine messages to event bytes.

    python benchmarks/front_end.py [--streams 256] [--rate 50] [--tokens 400] [--out ROWS.json]

Every step brings one token for each stream in one wire message, as the engine sends it; it is
decoded, detokenized, parsed and written as events of one API. Prints the CPU time per token and
the share of one core that ``--streams`` at ``--rate`` tokens a second would take. Sockets are not
counted, and neither is the engine: it is a list of bytes made before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import command, commit, machine
from starlette.types import Message
from tokenizers import Tokenizer

from mserve.core import FinishReason, RequestOutput, SamplingParams
from mserve.server import ServerConfig, Service, TextTools, create_app
from mserve.text import (
    ByteLevelTokenizer,
    JinjaChatTemplate,
    marker_ids,
    of_family,
)
from mserve.toy.tokenizer import chat_template, tokenizer_json
from mserve.wire import EngineStats, FromEngine, Outputs, Ready, Submit, ToEngine
from mserve.wire.messages import decode_from_engine, encode

NUM_RUNS = 3  # the least is told: the rest is other work on the machine
VOCAB_SIZE = 8000
EOS = "[e~["
MARK = "]<]minimax[>["
TOOL = {
    "name": "write",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
}
ASKED = [{"role": "user", "content": "Write something."}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": ASKED,
        "tools": [{"type": "function", "function": TOOL}],
    },
    "/v1/responses": {"input": "Write something.", "tools": [{"type": "function", **TOOL}]},
    "/v1/messages": {
        "messages": ASKED,
        "max_tokens": 100_000,
        "thinking": {"type": "adaptive"},
        "tools": [{"name": TOOL["name"], "input_schema": TOOL["parameters"]}],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="answers at once")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second of each")
    parser.add_argument("--tokens", type=int, default=400, help="tokens per answer")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()

    text = text_tools()
    rows = []
    print(f"{'':24}{'us/token':>10}{'of a core':>12}{'events/token':>14}")
    for path, body in REQUESTS.items():
        for kind, reply in replies(text, options.tokens).items():
            us, events = min(
                asyncio.run(measure(text, path, body, reply, options.streams))
                for _ in range(NUM_RUNS)
            )
            share = us * options.streams * options.rate / 1e6
            rows.append(
                {"api": path, "text": kind, "us_per_token": round(us, 2), "share": round(share, 3)}
            )
            print(f"{path.removeprefix('/v1/'):17}{kind:8}{us:9.1f}{share:12.1%}{events:14.2f}")
    if options.out is not None:
        facts = {
            "what": "front end cost of streams",
            "streams": options.streams,
            "rate": options.rate,
            "commit": commit(),
            "machine": machine(),
            "python": platform.python_version(),
            "command": command(),
        }
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def text_tools() -> TextTools:
    tokenizer = ByteLevelTokenizer(Tokenizer.from_str(tokenizer_json("m3", VOCAB_SIZE)))
    special = {"bos_token": "]~!b[", "eos_token": EOS}
    dialect = of_family("m3")
    template = JinjaChatTemplate(chat_template("m3"), special_tokens=special, where="m3")
    ids = marker_ids(dialect, tokenizer)
    return TextTools(tokenizer, template, SamplingParams(), dialect, ids)


def replies(text: TextTools, num_tokens: int) -> dict[str, list[int]]:
    """Answers of about ``num_tokens`` tokens: mostly words, or mostly an argument."""
    words = "The scheduler plans a step, the runner computes it, and the rest is text. "
    call = f'{MARK}<tool_call>\n{MARK}<invoke name="write">{MARK}<text>'
    end = f"{MARK}</text>{MARK}</invoke>\n{MARK}</tool_call>"

    def encoded(piece: str) -> list[int]:
        return text.tokenizer.encode(piece, add_special_tokens=False)

    filler = encoded(words * num_tokens)[:num_tokens]
    thinking = encoded("<mm:think>Let me see.</mm:think>")
    return {
        "words": [*thinking, *filler, *encoded(EOS)],
        "call": [*thinking, *encoded(call), *filler, *encoded(end), *encoded(EOS)],
    }


class Tap:
    """A link whose messages are handed over by the benchmark."""

    def __init__(self) -> None:
        self.request_ids: list[str] = []

    def open(self, receive: Callable[[FromEngine], None]) -> None:
        self.receive = receive
        receive(
            Ready(
                max_model_len=200_000,
                vocab_size=VOCAB_SIZE,
                num_blocks=1,
                max_num_seqs=4096,
                max_waiting=0,
            )
        )

    def send(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self.request_ids += [request.request_id for request in message.requests]

    def close(self) -> None:
        pass


async def measure(
    text: TextTools, path: str, body: dict[str, Any], reply: list[int], num_streams: int
) -> tuple[float, float]:
    """Microseconds of CPU and events sent, per token."""
    tap = Tap()
    service = Service(ServerConfig(served_model_names=("m3",)), text)
    service.client.attach(tap)
    app = create_app(service)
    num_events = 0

    async def send(message: Message) -> None:
        nonlocal num_events
        num_events += message.get("body", b"").count(b"data: ")

    data = json.dumps({**body, "stream": True, "store": False}).encode()
    streams = [
        asyncio.create_task(app(scope(path), receiver(data), send)) for _ in range(num_streams)
    ]
    while len(tap.request_ids) < num_streams:
        await asyncio.sleep(0)
    steps = [step(tap.request_ids, reply, number) for number in range(len(reply))]
    begun = time.process_time()
    for message in steps:
        tap.receive(decode_from_engine(message))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*streams)
    cpu_s = time.process_time() - begun
    num_tokens = num_streams * len(reply)
    return 1e6 * cpu_s / num_tokens, num_events / num_tokens


def step(request_ids: list[str], reply: list[int], number: int) -> bytes:
    """The engine's message about one token of every answer."""
    last = number == len(reply) - 1
    outputs = [
        RequestOutput(
            request_id=request_id,
            new_token_ids=[reply[number]],
            finish_reason=FinishReason.STOP if last else None,
            stop_token_id=reply[number] if last else None,
        )
        for request_id in request_ids
    ]
    return encode(Outputs(outputs, EngineStats()))


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }


def receiver(body: bytes) -> Callable[[], Any]:
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive


if __name__ == "__main__":
    main()
