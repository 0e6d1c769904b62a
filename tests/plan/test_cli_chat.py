"""The chat: its client against a scripted server, its commands, and what it shows."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mserve.cli.chat import Conversation, server_of
from mserve.cli.chat_client import ChatClient, Piece, Turn
from mserve.cli.chat_screen import Answer, describe, read_message, split_blocks
from mserve.core import EngineError, NotReadyError, RequestError, SetupError

WORDS = ["Hel", "lo ", "wor", "ld"]


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def answer_events(words: list[str]) -> Iterator[bytes]:
    yield event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    for word in words:
        yield event(choices=[{"delta": {"content": word}}])
    yield event(choices=[{"delta": {}, "finish_reason": "stop"}])
    usage = {"prompt_tokens": 130, "completion_tokens": len(words)}
    yield event(choices=[], usage={**usage, "prompt_tokens_details": {"cached_tokens": 128}})
    yield b"data: [DONE]\n\n"


class Server:
    """Answers with WORDS and keeps the bodies it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.loading = ["weights", "warmup"]
        self.refuse: httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            if not self.loading:
                return httpx.Response(200, json={})
            return httpx.Response(503, json={"stage": self.loading.pop(0), "percent": 50})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "toy"}]})
        self.bodies.append(json.loads(request.content))
        return self.refuse or httpx.Response(200, content=answer_events(WORDS))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Iterator[ChatClient]:
    with ChatClient("http://toy/v1/", transport=httpx.MockTransport(server)) as made:
        yield made


@pytest.fixture
def conversation(client: ChatClient) -> Conversation:
    console = Console(file=io.StringIO(), highlight=False)
    return Conversation(client, "toy", "Be brief.", {"temperature": 0.0, "top_p": None}, console)


def shown(conversation: Conversation) -> str:
    assert isinstance(conversation.console.file, io.StringIO)
    return conversation.console.file.getvalue()


def test_waits_until_the_server_is_ready(client: ChatClient) -> None:
    reports: list[tuple[str, float]] = []
    client.wait_until_ready(lambda stage, fraction: reports.append((stage, fraction)))
    assert reports == [("weights", 0.5), ("warmup", 0.5)]
    assert client.models() == ["toy"]


def test_does_not_wait_for_a_server_that_is_leaving() -> None:
    draining = httpx.Response(503, json={"status": "draining", "requests": 2})
    transport = httpx.MockTransport(lambda request: draining)
    with (
        ChatClient("http://toy", transport=transport) as client,
        pytest.raises(NotReadyError, match="draining"),
    ):
        client.wait_until_ready(lambda stage, fraction: None)


def test_streams_pieces_and_then_what_it_cost(client: ChatClient) -> None:
    *pieces, turn = client.stream("toy", [{"role": "user", "content": "hi"}], {})
    assert pieces == [Piece(word) for word in WORDS]
    assert isinstance(turn, Turn)
    assert (turn.prompt_tokens, turn.cached_tokens, turn.completion_tokens) == (130, 128, 4)
    assert turn.finish_reason == "stop"
    assert "prompt 130 (128 cached)" in describe(turn)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, RequestError), (500, EngineError), (503, NotReadyError)]
)
def test_an_error_envelope_becomes_our_error(
    client: ChatClient, server: Server, status: int, kind: type[Exception]
) -> None:
    server.refuse = httpx.Response(status, json={"error": {"message": "temperature is 9"}})
    with pytest.raises(kind, match="temperature is 9"):
        list(client.stream("toy", [], {}))


def test_an_error_event_after_the_start_becomes_our_error(
    client: ChatClient, server: Server
) -> None:
    events = event(choices=[{"delta": {"content": "Hel"}}]) + event(error={"message": "it broke"})
    server.refuse = httpx.Response(200, content=events)
    stream = client.stream("toy", [], {})
    assert next(stream) == Piece("Hel")
    with pytest.raises(EngineError, match="it broke"):
        next(stream)


def test_another_kind_of_server_is_named(client: ChatClient, server: Server) -> None:
    server.refuse = httpx.Response(200, content=b"data: <html>\n\n")
    with pytest.raises(SetupError, match="OpenAI"):
        list(client.stream("toy", [], {}))


def test_a_conversation_sends_all_that_was_said(conversation: Conversation, server: Server) -> None:
    conversation.ask("hi")
    conversation.ask("and?")
    assert shown(conversation) == "Hello world\nHello world\n"
    said = [(message["role"], message["content"]) for message in server.bodies[1]["messages"]]
    assert said == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "Hello world"),
        ("user", "and?"),
    ]
    assert server.bodies[1]["temperature"] == 0.0
    assert "top_p" not in server.bodies[1]


def test_what_the_model_thought_stays_in_the_conversation(
    conversation: Conversation, server: Server
) -> None:
    """It is not shown where there is no terminal, and goes back with what was said."""
    deltas = [{"reasoning": "so"}, {"reasoning_content": " so"}, {"content": "yes"}]
    events = [event(choices=[{"delta": delta}]) for delta in deltas]
    server.refuse = httpx.Response(200, content=b"".join(events))
    conversation.ask("hi")
    assert shown(conversation) == "yes\n"
    server.refuse = None
    conversation.ask("and?")
    conversation.ask("more?")
    assert server.bodies[-1]["messages"][2:5] == [
        {"role": "assistant", "content": "yes", "reasoning_content": "so so"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "Hello world"},
    ]


def test_a_refused_question_is_forgotten(conversation: Conversation, server: Server) -> None:
    server.refuse = httpx.Response(400, json={"error": {"message": "no"}})
    with pytest.raises(RequestError):
        conversation.ask("hi")
    assert conversation.turns == []


def test_commands_change_the_conversation(
    conversation: Conversation, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "chat.json"
    lines = iter(
        [
            "/set max_tokens 5",
            "/set top_k=3",
            "/set top_k default",
            "/set speed 3",
            "/set top_p high",
            "hi",
            "/retry",
            "/system Be long.",
            f"/save {saved}",
            "/save /no/such/folder/file",
            "/nonsense",
            "/reset",
            "again",
            "/exit",
            "never read",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    conversation.run()
    assert next(lines) == "never read"
    first, retried, last = server.bodies
    assert first == retried
    assert first["max_tokens"] == 5 and "top_k" not in first and "top_p" not in first
    assert [message["content"] for message in last["messages"]] == ["Be long.", "again"]
    assert json.loads(saved.read_text())["messages"][-1]["content"] == "Hello world"
    for complaint in ("speed is not", "top_p takes a number", "cannot write", "/nonsense is not"):
        assert complaint in shown(conversation)


def test_an_error_does_not_end_the_conversation(
    conversation: Conversation, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["hi"])
    server.refuse = httpx.Response(503, json={"error": {"message": "the queue is full"}})

    def next_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    conversation.run()
    assert "the queue is full" in shown(conversation)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_server_of_ours_that_is_gone_ends_the_conversation(
    conversation: Conversation, server: Server, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    def check() -> None:
        if is_gone:
            raise SetupError("signal 9 ended the server")

    lines = iter(["hi", "and?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    conversation.check_server = check
    server.refuse = httpx.Response(500, json={"error": {"message": "it failed"}})
    with pytest.raises(SetupError, match="signal 9") if is_gone else contextlib.nullcontext():
        conversation.run()
    assert list(lines) == (["and?", "/exit"] if is_gone else [])
    assert shown(conversation).count("it failed") == (0 if is_gone else 2)


def test_shared_hints_name_no_command(tmp_path: Path) -> None:
    """`mserve chat` and `mserve eval` say the same."""
    with contextlib.ExitStack() as stack, pytest.raises(SetupError) as flags:
        server_of("http://127.0.0.1:9", ["--x"], None, stack)
    with pytest.raises(SetupError) as dead, ChatClient("http://127.0.0.1:9") as client:
        client.wait_until_ready(lambda stage, fraction: None)
    for error in (flags.value, dead.value):
        assert error.hint is not None
        assert {"chat", "eval"}.isdisjoint(f"{error.message} {error.hint}".split())


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["one line"], "one line"),
        (["first\\", "second\\", "third"], "first\nsecond\nthird"),
        (['"""', "first", "", "third\\", '"""'], "first\n\nthird\\"),
    ],
)
def test_a_message_may_have_several_lines(
    typed: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert read_message() == message
    assert list(lines) == []


MARKDOWN = st.lists(st.sampled_from(["text", "\n", "\n\n", "```\n", "  ", "- item\n"])).map("".join)


@given(text=MARKDOWN)
def test_blocks_are_cut_only_between_blocks(text: str) -> None:
    finished, growing = split_blocks(text)
    assert finished + growing == text
    opened = sum(line.lstrip().startswith("```") for line in finished.splitlines())
    assert opened % 2 == 0
    assert split_blocks(finished) == (finished, "")


def test_a_terminal_shows_tags_and_no_escape() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Answer(console) as answer:
        answer.add(Piece("<think>\nmusing\n</think>\n\n<mm:think>more</mm:think> \x1b[2Jend"))
    assert isinstance(console.file, io.StringIO)
    kept = console.file.getvalue()
    for said in ("<think>", "musing", "</think>", "<mm:think>more</mm:think>", "\u241b[2Jend"):
        assert said in kept


def test_a_terminal_shows_markdown_once(client: ChatClient) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    Conversation(client, "toy", None, {}, console).ask("hi")
    assert isinstance(console.file, io.StringIO)
    # What stays on the screen begins where the redrawn part ends and the cursor is shown again.
    kept = console.file.getvalue().rpartition("\x1b[?25h")[2]
    assert kept.count("Hello world") == 1
    assert "4 tokens" in kept.splitlines()[-1]
