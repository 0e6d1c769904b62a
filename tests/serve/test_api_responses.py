"""The Responses API: what is stored, continued, cancelled and passed over."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from in_process import MODEL, TOOL, InProcess, events_of

from mserve.server.store import ResponseStore, StoredResponse

PATH = "/v1/responses"
FUNCTION = {"type": "function", **TOOL}
THINKS = "<mm:think>Hm.\n so</mm:think>"
MARK = "]<]minimax[>["
CALL = (
    f'{MARK}<tool_call>\n{MARK}<invoke name="get_weather">{MARK}<city>Oslo{MARK}</city>'
    f"{MARK}</invoke>\n{MARK}</tool_call>"
)


def post(server: InProcess, **fields: Any) -> httpx.Response:
    response = server.post(PATH, {"model": MODEL, "input": "Hello", **fields})
    assert response.status_code == 200, response.text
    return response


def test_the_form_of_an_answer() -> None:
    server = InProcess("m3", THINKS + "Yes." + CALL, num_cached=9)
    answer = post(server, tools=[FUNCTION], metadata={"a": "b"}).json()
    reasoning, message, call = answer["output"]
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    assert answer["metadata"] == {"a": "b"}
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm.\n so"}]
    assert reasoning["summary"] == []
    assert message["content"][0]["text"] == "Yes."
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city":"Oslo"}')
    assert call["call_id"].startswith("call_")
    assert len({item["id"] for item in answer["output"]}) == 3
    usage = answer["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 9
    assert usage["output_tokens_details"]["reasoning_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_stream_ends_with_what_the_whole_answer_is() -> None:
    server = InProcess("m3", THINKS + "Yes.")
    whole = post(server).json()
    last = events_of(post(server, stream=True))[-1]["response"]
    assert last["usage"] == whole["usage"]
    texts = [[part["text"] for part in item["content"]] for item in last["output"]]
    assert texts == [[part["text"] for part in item["content"]] for item in whole["output"]]


def test_length_is_incomplete() -> None:
    answer = post(InProcess("m3", "One two three four."), max_output_tokens=3).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    last = events_of(post(InProcess("m3", "One two."), max_output_tokens=2, stream=True))[-1]
    assert last["type"] == "response.incomplete"


def test_a_stored_response_is_continued_with_thinking_and_calls() -> None:
    server = InProcess("m3", THINKS + "Look." + CALL)

    async def talk(client: httpx.AsyncClient) -> None:
        asked = {"input": "Weather?", "tools": [FUNCTION], "instructions": "Be brief."}
        first = (await client.post(PATH, json=asked)).json()
        got = (await client.get(f"{PATH}/{first['id']}")).json()
        assert got == first
        call = first["output"][-1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        body = {**asked, "input": [result], "previous_response_id": first["id"]}
        second = await client.post(PATH, json=body)
        assert second.status_code == 200, second.text
        assert second.json()["previous_response_id"] == first["id"]
        assert f"]~b]ai\n{THINKS}Look.{CALL}[e~[" in server.prompt
        assert "<response>rain</response>" in server.prompt
        assert server.prompt.count("Be brief.") == 1
        # The chain goes on although its first response is deleted.
        deleted = await client.delete(f"{PATH}/{first['id']}")
        assert deleted.json() == {"id": first["id"], "object": "response.deleted", "deleted": True}
        assert (await client.get(f"{PATH}/{first['id']}")).status_code == 404
        body = {"input": "And?", "previous_response_id": second.json()["id"]}
        assert (await client.post(PATH, json=body)).status_code == 200
        assert server.prompt.count(THINKS) == 2
        body = {"input": "And?", "previous_response_id": first["id"]}
        gone = await client.post(PATH, json=body)
        assert gone.json()["error"]["code"] == "response_not_found"

    server.ask(talk)


def test_what_is_not_to_be_stored_is_not() -> None:
    server = InProcess("m3", "Yes.")

    async def talk(client: httpx.AsyncClient) -> None:
        answer = await client.post(PATH, json={"input": "Hello", "store": False})
        assert answer.json()["store"] is False
        got = await client.get(f"{PATH}/{answer.json()['id']}")
        assert got.status_code == 404
        assert got.json()["error"]["code"] == "response_not_found"
        assert len(server.service.responses) == 0
        earlier = {"input": "And?", "previous_response_id": answer.json()["id"]}
        refused = await client.post(PATH, json=earlier)
        assert refused.status_code == 404
        assert refused.json()["error"]["param"] == "previous_response_id"

    server.ask(talk)


@pytest.mark.parametrize("carried", ["encrypted_content", "content", "summary"])
def test_thinking_is_carried_by_clients_that_store_nothing(carried: str) -> None:
    server = InProcess("m3", THINKS + "Look." + CALL)
    include = ["reasoning.encrypted_content"]
    answer = post(server, tools=[FUNCTION], store=False, include=include).json()
    reasoning, *rest = answer["output"]
    sent = {"type": "reasoning", "summary": [], carried: reasoning.get(carried)}
    if carried == "summary":
        sent["summary"] = [{"type": "summary_text", "text": "Hm.\n so"}]
    output = {"type": "function_call_output", "call_id": rest[-1]["call_id"], "output": "rain"}
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "W?"}]}
    response = post(server, input=[user, sent, *rest, output], tools=[FUNCTION])
    assert f"]~b]ai\n{THINKS}Look.{CALL}[e~[" in server.prompt
    assert "x-mserve-ignored" not in response.headers


def test_items_between_two_thoughts_are_turns_of_their_own() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}

    items = [
        {"role": "user", "content": "Go."},
        thought("A."),
        {"role": "assistant", "content": "One."},
        thought("B."),
        {"role": "assistant", "content": "Two."},
    ]
    server = InProcess("m3", "Yes.")
    post(server, input=items)
    first, second = "<mm:think>A.</mm:think>One.", "<mm:think>B.</mm:think>Two."
    assert f"]~b]ai\n{first}[e~[\n]~b]ai\n{second}[e~[" in server.prompt


def test_thinking_sealed_elsewhere_is_passed_over_with_a_note() -> None:
    items = [
        {"role": "user", "content": "Hello"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And?"},
    ]
    response = post(InProcess("m3", "Yes."), input=items)
    assert response.headers["x-mserve-ignored"] == "input[1].encrypted_content"


def test_a_codex_like_request() -> None:
    """Tool types that we do not run, a developer message, and fields that only they know."""
    tools = [
        FUNCTION,
        {"type": "web_search"},
        {"type": "namespace", "name": "n", "tools": []},
        {"type": "custom", "name": "apply_patch"},
        {"type": "local_shell"},
    ]
    developer = {"type": "message", "role": "developer", "content": "Use tools."}
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go."}]}
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    server = InProcess("m3", "Done.")
    response = post(
        server,
        instructions="You are an agent.",
        input=[developer, search, user],
        tools=tools,
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        client_metadata={"x": "y"},
        text={"verbosity": "low"},
    )
    assert events_of(response)[-1]["type"] == "response.completed"
    ignored = response.headers["x-mserve-ignored"].split(", ")
    assert {"tools.1.web_search", "tools.2.namespace", "input.1.web_search_call"} <= set(ignored)
    assert "prompt_cache_key" in ignored
    assert "You are an agent.\n\nUse tools." in server.prompt
    assert "medium" in response.headers["x-mserve-warning"]


def test_input_tokens_are_those_of_the_prompt() -> None:
    server = InProcess("m3", "Yes.")
    body = {"input": "Hello", "tools": [FUNCTION], "instructions": "Be brief."}
    counted = server.post(f"{PATH}/input_tokens", body).json()
    assert counted["object"] == "response.input_tokens"
    assert post(server, **body).json()["usage"]["input_tokens"] == counted["input_tokens"]
    assert len(server.engine.requests) == 1  # counting asks nothing of the engine


def test_a_background_response_can_be_waited_for_and_cancelled() -> None:
    server = InProcess("m3", "word " * 60, pause_s=0.002)

    async def talk(client: httpx.AsyncClient) -> None:
        first = (await client.post(PATH, json={"input": "a", "background": True})).json()
        second = (await client.post(PATH, json={"input": "b", "background": True})).json()
        assert (first["status"], first["output"]) == ("queued", [])
        early = await client.post(PATH, json={"input": "c", "previous_response_id": second["id"]})
        assert early.status_code == 400
        cancelled = (await client.post(f"{PATH}/{second['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        assert len(server.engine.aborted) == 1
        async with asyncio.timeout(20):
            while (got := (await client.get(f"{PATH}/{first['id']}")).json())[
                "status"
            ] != "completed":
                await asyncio.sleep(0.01)
        assert got["output"][0]["content"][0]["text"].count("word") == 60
        again = (await client.post(f"{PATH}/{second['id']}/cancel")).json()
        assert again["status"] == "cancelled"
        late = (await client.post(f"{PATH}/{first['id']}/cancel")).json()
        assert late["status"] == "completed"

    server.ask(talk)


def test_what_had_come_before_a_cancel_stays() -> None:
    server = InProcess("m3", THINKS + "word " * 60, pause_s=0.002)

    async def talk(client: httpx.AsyncClient) -> tuple[Any, Any]:
        running = (await client.post(PATH, json={"input": "a", "background": True})).json()
        path = f"{PATH}/{running['id']}"
        async with asyncio.timeout(20):
            while len((await client.get(path)).json()["output"]) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        cancelled = (await client.post(path + "/cancel")).json()
        await asyncio.sleep(0.02)
        return cancelled, (await client.get(path)).json()

    cancelled, later = server.ask(talk)
    assert later == cancelled
    reasoning, message = cancelled["output"]
    assert (reasoning["status"], message["status"]) == ("completed", "incomplete")
    assert message["content"][0]["text"].startswith("word")
    assert cancelled["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("limit", range(1, 60, 4))
def test_the_item_that_was_cut_says_so(limit: int) -> None:
    server = InProcess("m3", THINKS + "Yes." + CALL)
    answer = post(server, tools=[FUNCTION], max_output_tokens=limit).json()
    statuses = [item["status"] for item in answer["output"]]
    assert "incomplete" not in statuses[:-1]
    if answer["status"] == "completed":
        assert set(statuses) == {"completed"}
    elif statuses and answer["output"][-1]["type"] == "reasoning":
        assert statuses == ["incomplete"]


def test_inclusions_that_nobody_here_makes_are_listed() -> None:
    asked = ["reasoning.encrypted_content", "file_search_call.results"]
    response = post(InProcess("m3", "Yes."), include=asked)
    assert response.headers["x-mserve-ignored"] == "include.file_search_call.results"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "alien", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": {"name": "user"}, "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"truncation": "some"}, "truncation"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    response = InProcess("m3", "Yes.").post(PATH, {"input": "Hello", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def stored(name: str, size: int, status: str = "completed") -> StoredResponse:
    response = {"id": name, "status": status, "output": [{"text": "x" * size}]}
    return StoredResponse(response, [], cancel=lambda: None)


def test_the_store_is_bounded_and_drops_what_was_used_least_recently() -> None:
    store = ResponseStore(max_responses=3, max_bytes=10_000)
    for name in ("a", "b", "c"):
        store.put(stored(name, 10))
        store.settle(name)
    store.get("a")
    store.put(stored("d", 10))
    store.settle("d")
    assert [name for name in "abcd" if holds(store, name)] == ["a", "c", "d"]
    store.put(stored("running", 10, "in_progress"))
    store.put(stored("large", 9_000))
    store.settle("large")
    # What runs is never dropped; the rest makes room until both bounds hold.
    assert holds(store, "running")
    assert holds(store, "large")
    assert len(store) <= 3
    store.put(stored("too large", 20_000))
    store.settle("too large")
    assert [name for name in ("large", "too large") if holds(store, name)] == []
    assert holds(store, "running")


def holds(store: ResponseStore, name: str) -> bool:
    return name in store._stored
