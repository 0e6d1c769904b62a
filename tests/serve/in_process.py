"""The whole front end in this process: the real application over ASGI, the toys' tokenizers and
templates, and an engine that says what a test tells it to, token by token."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
from tokenizers import Tokenizer

from mserve.core import FinishReason, Request, RequestOutput, SamplingParams
from mserve.server import ServerConfig, Service, TextTools, create_app
from mserve.text import (
    ByteLevelTokenizer,
    JinjaChatTemplate,
    marker_ids,
    of_family,
)
from mserve.text.grammar import GrammarChecker, vocabulary_facts
from mserve.toy.tokenizer import chat_template, tokenizer_json
from mserve.wire import Abort, EngineStats, FromEngine, Outputs, Ready, Submit, ToEngine

MODEL = "toy"
EOS = "[e~["
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}

T = TypeVar("T")


@functools.cache
def text_tools(arch: str) -> TextTools:
    """What a toy checkpoint of ``arch`` ("m2", "m3") brings."""
    tokenizer = ByteLevelTokenizer(Tokenizer.from_str(tokenizer_json(arch, 1500)))
    special = {"bos_token": "]~!b[", "eos_token": EOS}
    dialect = of_family(arch)
    return TextTools(
        tokenizer,
        JinjaChatTemplate(chat_template(arch), special_tokens=special, where=arch),
        SamplingParams(),
        dialect,
        marker_ids(dialect, tokenizer),
        tuple(tokenizer.encode(EOS, add_special_tokens=False)),
    )


@functools.cache
def grammars(arch: str) -> GrammarChecker:
    """One for all applications: its processes take a second to start."""
    text = text_tools(arch)
    assert text.dialect is not None
    checker = GrammarChecker(vocabulary_facts(text.tokenizer, text.dialect, text.eos_token_ids))
    _CHECKERS.append(checker)
    return checker


def close_grammars() -> None:
    while _CHECKERS:
        _CHECKERS.pop().close()
    grammars.cache_clear()


_CHECKERS: list[GrammarChecker] = []


class ScriptedEngine:
    """A link whose far end answers every request with the same tokens, few per message."""

    def __init__(
        self,
        reply: list[int],
        *,
        eos: int,
        num_cached: int = 0,
        pause_s: float = 0.0,
        tokens_per_message: int = 1,
        max_model_len: int = 4096,
    ) -> None:
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.reply = reply
        self.eos = eos
        self._num_cached = num_cached
        self._pause_s = pause_s
        self._tokens_per_message = tokens_per_message
        self._max_model_len = max_model_len
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, receive: Callable[[FromEngine], None]) -> None:
        self._receive = receive
        receive(
            Ready(
                max_model_len=self._max_model_len,
                vocab_size=1500,
                num_blocks=64,
                max_num_seqs=8,
                max_waiting=8,
            )
        )

    def send(self, message: ToEngine) -> None:
        match message:
            case Submit(requests):
                self.requests += requests
                for request in requests:
                    task = asyncio.get_running_loop().create_task(self._answer(request))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case Abort(request_ids):
                self.aborted += request_ids

    def close(self) -> None:
        pass

    async def _answer(self, request: Request) -> None:
        limit = request.sampling.max_tokens or self._max_model_len
        reply = [*self.reply, self.eos]
        sent = reply[:limit]
        for start in range(0, len(sent), self._tokens_per_message):
            await asyncio.sleep(self._pause_s)
            if request.request_id in self.aborted:
                return
            new = sent[start : start + self._tokens_per_message]
            is_last = start + len(new) == len(sent)
            at_eos = is_last and len(sent) == len(reply)
            finish = FinishReason.STOP if at_eos else FinishReason.LENGTH
            output = RequestOutput(
                request_id=request.request_id,
                new_token_ids=new,
                num_cached_tokens=self._num_cached if start == 0 else 0,
                finish_reason=finish if is_last else None,
                stop_token_id=self.eos if at_eos else None,
            )
            self._receive(Outputs([output], EngineStats()))


class InProcess:
    """One application; ``ask`` runs a conversation with it on a loop of its own."""

    def __init__(self, arch: str, reply: str = "", *, spelled: bool = False, **engine: Any) -> None:
        """``reply``: what the model writes before eos. ``spelled``: character by character, so
        that no marker is a token of its own."""
        self.arch = arch
        self.text = text_tools(arch)
        encode = self.text.tokenizer.encode
        pieces = [chr(byte) for byte in reply.encode()] if spelled else [reply]
        if spelled:
            assert reply.isascii()
        ids = [i for piece in pieces for i in encode(piece, add_special_tokens=False)]
        (eos,) = encode(EOS, add_special_tokens=False)
        self.engine = ScriptedEngine(ids, eos=eos, **engine)
        self.config: dict[str, Any] = {}

    def ask(self, conversation: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async def run() -> T:
            config = ServerConfig(served_model_names=(MODEL,), **self.config)
            self.service = Service(config, self.text)
            self.service.__dict__["grammars"] = grammars(self.arch)  # instead of its own
            self.service.client.attach(self.engine)
            transport = httpx.ASGITransport(create_app(self.service))
            async with httpx.AsyncClient(transport=transport, base_url="http://mserve") as client:
                return await conversation(client)

        return asyncio.run(run())

    def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return self.ask(lambda client: client.post(path, json=body, **more))

    @property
    def prompt(self) -> str:
        """What the engine was last sent, as text."""
        ids = self.engine.requests[-1].prompt_token_ids
        return self.text.tokenizer.decode(ids, skip_special_tokens=False)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; names must be those of the payloads."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    events = []
    for block in response.text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields.get("data", "[DONE]") == "[DONE]":
            continue
        payload = json.loads(fields["data"])
        if "event" in fields:
            assert fields["event"] == payload["type"]
        events.append(payload)
    return events
