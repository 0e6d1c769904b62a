"""Evaluation without a server: asking, intervals, floors, suites and the record."""

from __future__ import annotations

import asyncio
import json
import lzma
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo import suites as demo_suites
from mserve.core import EngineError, MserveError, RequestError, SetupError
from mserve.evaluate import (
    Answer,
    AskClient,
    Case,
    Check,
    Floor,
    Outcome,
    Record,
    Score,
    check_floors,
    judge,
    load_suite,
    parse_floor,
    run_cases,
    scores_of,
    suite_names,
    unanswered_of,
    wilson,
    wrong_of,
)

# --- intervals ---


@given(st.integers(1, 5000), st.data())
def test_the_interval_solves_the_score_equation(num_cases: int, data: st.DataObject) -> None:
    """Its ends are the rates from which the one seen is 1.96 standard errors away, which is how
    Wilson defines them; at 0 and 1 one end is the rate itself."""
    num_right = data.draw(st.integers(0, num_cases))
    seen, ends = num_right / num_cases, wilson(num_right, num_cases)
    assert 0 <= ends[0] <= seen <= ends[1] <= 1
    for end in ends:
        error = math.sqrt(end * (1 - end) / num_cases)
        assert abs(seen - end) == pytest.approx(1.959963984540054 * error, rel=1e-6, abs=1e-12)


def test_the_interval_of_published_tables() -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for num_right, num_cases, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = wilson(num_right, num_cases)
        assert found == pytest.approx((low, high), abs=5e-5)


# --- asking ---

CALL = {"name": "f", "arguments": {"a": 1, "b": [True, "x"]}}


@pytest.mark.parametrize("arguments", ['{"a": 2, "b": [true, "x"]}', '{"a": 1}', "{", None])
def test_other_arguments_are_another_call(arguments: str | None) -> None:
    answer = ask({"choices": [{"message": {"tool_calls": [call("f", arguments)]}}]})
    assert judge(Check(calls=(CALL,)), answer)
    same = json.dumps({"b": [True, "x"], "a": 1})
    right = ask({"choices": [{"message": {"tool_calls": [call("f", same)]}}]})
    assert judge(Check(calls=(CALL,)), right) is None


def call(name: str, arguments: str | None) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


class Server:
    """Answers with what it was given, in turn; the last one again and again. 0: the connection
    breaks."""

    def __init__(self, *replies: tuple[int, Any]) -> None:
        self.replies = list(replies)
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most_running = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        status, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if not status:
            raise httpx.RemoteProtocolError("it hung up", request=request)
        return httpx.Response(status, json=body)

    def client(self) -> AskClient:
        return AskClient("http://it/v1", transport=httpx.MockTransport(self), pause_s=0.0)


def ask(reply: Any, status: int = 200) -> Answer:
    async def once() -> Answer:
        async with Server((status, reply)).client() as client:
            return await client.ask({})

    return asyncio.run(once())


def said(text: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "reasoning_content": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 3}}


PARTS = [{"type": "text", "text": "Pa"}, {"type": "refusal"}, {"type": "text", "text": "ris"}]
NO_TEXTS: list[Any] = [5, {"text": "Paris"}, ["Paris"], [{"type": "text", "text": 5}]]
REFUSAL = {"error": {"message": "too long", "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("status", "reply", "kind", "message"),
    [
        (400, REFUSAL, RequestError, "too long"),
        (500, REFUSAL, MserveError, "too long"),
        (404, REFUSAL, SetupError, "too long"),
        (401, REFUSAL, SetupError, "too long"),
        (200, {"object": "list"}, SetupError, "OpenAI"),
        (200, {"choices": []}, SetupError, "OpenAI"),
        *[(200, said(content), SetupError, "OpenAI") for content in NO_TEXTS],
        (502, ["bad"], SetupError, "502"),
        (500, ["bad"], EngineError, "500"),
    ],
)
def test_what_is_no_answer(status: int, reply: Any, kind: type[MserveError], message: str) -> None:
    with pytest.raises(kind, match=message):
        ask(reply, status)


def test_an_answer_in_parts_is_the_text_of_them() -> None:
    assert ask(said(PARTS)).content == "Paris"
    assert ask(said(None)).content == ""


def cases(*texts: str) -> list[Case]:
    return [
        Case(request={"messages": [{"role": "user", "content": text}]}, check=Check(equals=text))
        for text in texts
    ]


def run(server: Server, suites: dict[str, list[Case]], concurrency: int = 2) -> list[Outcome]:
    async def all_of_it() -> list[Outcome]:
        async with server.client() as client:
            return await run_cases(
                client,
                {name: dict(enumerate(cases)) for name, cases in suites.items()},
                model="m",
                settings={"temperature": 0.0},
                concurrency=concurrency,
            )

    return asyncio.run(all_of_it())


def test_outcomes_stand_in_the_order_of_the_cases() -> None:
    server = Server((200, said("a")), (503, REFUSAL), (200, said("b")), (400, REFUSAL))
    outcomes = run(server, {"s": cases("a", "b"), "t": cases("c")}, concurrency=1)
    assert [(one.suite, one.number) for one in outcomes] == [("s", 0), ("s", 1), ("t", 0)]
    assert all(one.wrong is None for one in outcomes)
    assert [one.unanswered for one in outcomes] == [None, None, "too long"]
    assert all(body["model"] == "m" and body["temperature"] == 0.0 for body in server.bodies)


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_no_more_run_at_a_time_than_allowed(concurrency: int) -> None:
    server = Server((200, said("x")))
    run(server, {"s": cases(*"x" * 20)}, concurrency)
    assert server.most_running == min(concurrency, 20)


HICCUPS = [(0, None), (502, ["bad"]), (503, REFUSAL), (429, REFUSAL)]


@pytest.mark.parametrize("hiccup", HICCUPS, ids=lambda hiccup: str(hiccup[0]))
def test_a_hiccup_costs_no_answer(hiccup: tuple[int, Any]) -> None:
    server = Server(hiccup, (200, said("a")), hiccup, hiccup, (200, said("b")))
    outcomes = run(server, {"s": cases("a", "b")}, concurrency=1)
    assert [(one.wrong, one.unanswered) for one in outcomes] == [(None, None)] * 2


@pytest.mark.parametrize("reply", [(0, None), (502, ["bad"]), (200, {})])
def test_without_a_server_nothing_is_counted(reply: tuple[int, Any]) -> None:
    with pytest.raises(SetupError, match=r"hung up|OpenAI"):
        run(Server(reply), {"s": cases("a", "b", "c")})


def test_what_a_server_answered_before_it_was_gone_is_kept() -> None:
    """And it is not looked for again with every question that is left."""
    server = Server((200, said("a")), (500, REFUSAL), (0, None))
    outcomes = run(server, {"s": cases(*"ab", *"c" * 50)}, concurrency=1)
    assert outcomes[0].unanswered is None
    assert outcomes[1].unanswered == "too long"
    assert all("hung up" in (one.unanswered or "") for one in outcomes[2:])
    assert len(server.bodies) < 10


# --- floors and scores ---


def outcome(suite: str, part: str, right: bool) -> Outcome:
    case = Case(request={}, check=Check(), part=part)
    return Outcome(suite=suite, number=0, case=case, answer=Answer(), wrong=None if right else "no")


def unanswered(suite: str, part: str) -> Outcome:
    case = Case(request={}, check=Check(), part=part)
    return Outcome(suite=suite, number=0, case=case, answer=Answer(), unanswered="busy")


def test_scores_by_suite_and_part() -> None:
    found = scores_of(
        [
            *[outcome("needle", "1k", True)] * 3,
            *[outcome("needle", "4k", right) for right in (True, False)],
            outcome("facts", "only", False),
            *[unanswered("needle", part) for part in ("1k", "12k")],
            unanswered("talk", ""),
        ]
    )
    assert {name: (one.rate, one.num_cases) for name, one in found.items()} == {
        "needle": (0.8, 5),
        "needle/1k": (1.0, 3),
        "needle/4k": (0.5, 2),
        "needle/12k": (None, 0),
        "facts": (0.0, 1),
        "talk": (None, 0),
    }
    assert all(
        one.interval == (None if one.rate is None else wilson(round(one.rate * n), n))
        for one in found.values()
        for n in [one.num_cases]
    )


@pytest.mark.parametrize("text", ["needle=0.95", "needle=95%", "needle=.950"])
def test_floors_are_read(text: str) -> None:
    assert parse_floor(text) == Floor("needle", 0.95)


@pytest.mark.parametrize(
    "text", ["needle", "=1", "needle=", "needle=x", "needle=95", "n=-1", "n=nan"]
)
def test_other_floors_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="not understood"):
        parse_floor(text)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_floor_is_met_from_it_up(rate: float, floor: float) -> None:
    [result] = check_floors({"s": Score(rate=rate, num_cases=1)}, [Floor("s", floor)])
    assert result.is_met == (rate >= floor)


def test_a_floor_is_missed_where_nothing_was_answered() -> None:
    [result] = check_floors(scores_of([unanswered("s", "")]), [Floor("s", 0.0)])
    assert not result.is_met


def test_a_floor_under_nothing_is_refused() -> None:
    with pytest.raises(SetupError) as refused:
        check_floors({"facts": Score(rate=1.0, num_cases=1)}, [Floor("fact", 0.5)])
    assert "fact:" in refused.value.message
    assert refused.value.hint is not None and "facts" in refused.value.hint


def test_the_record_can_be_read_back() -> None:
    outcomes = [outcome("s", "p", True), outcome("s", "q", False)]
    record = Record(
        target="http://it",
        model="m",
        started="2026-01-01T00:00:00+00:00",
        duration_s=1.5,
        settings={"temperature": 0.0},
        scores=scores_of(outcomes),
        floors=tuple(check_floors(scores_of(outcomes), [Floor("s", 0.4)])),
        wrong=(wrong_of(outcomes[1]),),
        unanswered=(unanswered_of(unanswered("s", "r")),),
    )
    written = json.loads(record.to_json())
    assert written["scores"]["s"]["interval"] == list(wilson(1, 2))
    assert written["floors"] == [{"name": "s", "floor": 0.4, "rate": 0.5}]
    assert [(one["suite"], one["part"], one["wrong"]) for one in written["wrong"]] == [
        ("s", "q", "no")
    ]
    assert written["unanswered"] == [{"suite": "s", "number": 0, "part": "r", "reason": "busy"}]
    assert written["stopped"] is None
    assert {"mserve_version", "model", "started", "duration_s", "settings"} <= written.keys()


# --- suites ---


@pytest.mark.parametrize("name", suite_names())
def test_a_shipped_suite_is_what_the_seed_makes(name: str) -> None:
    loaded_name, loaded = load_suite(name)
    made = [json.loads(line) for line in demo_suites.lines(name).splitlines()]
    assert loaded_name == name
    assert [(case.request, case.part) for case in loaded] == [
        (case["request"], case.get("part", "")) for case in made
    ]
    assert all(case["check"] for case in made)


def test_every_suite_of_the_demo_is_shipped() -> None:
    assert set(suite_names()) == {*demo_suites.NUM_CASES, "needle", "published"}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.xz"])
def test_a_suite_of_ones_own(tmp_path: Path, ending: str) -> None:
    line = b'{"request": {"messages": []}, "check": {"contains": ["x"]}}\n\n'
    path = tmp_path / f"mine{ending}"
    path.write_bytes(lzma.compress(line) if ending.endswith("xz") else line)
    assert load_suite(str(path)) == (
        "mine",
        [Case(request={"messages": []}, check=Check(contains=("x",)))],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "line 1"),
        (b'{"request": {}, "check": {}}\n{"request": {}}', "line 2.*check"),
        (b'{"request": {}, "check": {"contain": []}}', "contain"),
    ],
)
def test_what_is_no_suite_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=message):
        load_suite(str(path))


@pytest.mark.parametrize("name", ["fact", "gone.jsonl", "../suites/facts", "x.jsonl.xz"])
def test_an_unknown_suite_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match=r"no suite|cannot read"):
        load_suite(name)
