"""Every spelling of a conversation renders alike, and what was generated is replayed exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_cases import DIALECTS, TEMPLATES, answer, call_of, tools
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dialect_round_trip import collected, events_of

from mserve.core import RequestError
from mserve.text import (
    DialectParser,
    KeptThinking,
    Start,
    Tools,
    arguments_of,
    normalised,
    with_stable_prefix,
)

USER = {"role": "user", "content": "Hi"}


def render(arch: str, messages: list[dict[str, Any]], *, generate: bool = False) -> str:
    return TEMPLATES[arch].render(messages, add_generation_prompt=generate, variables={})


# --- reasoning ---

THOUGHT = " why?\n\nthen "
SPELLINGS: list[dict[str, Any]] = [
    {"reasoning_content": THOUGHT, "content": "so"},
    {"reasoning": THOUGHT, "content": "so"},
    {"reasoning": THOUGHT, "reasoning_content": THOUGHT, "content": "so"},
    {"reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}], "content": "so"},
    {
        "content": [
            {"type": "thinking", "thinking": THOUGHT, "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "so"},
        ]
    },
    {"content": f"<think>\n{THOUGHT}\n</think>\n\nso"},
    {"content": f"<mm:think>{THOUGHT}</mm:think>so"},
    {"content": f"{THOUGHT}\n</think>\n\nso".lstrip(" ")},
    {"content": f"<think>\n{THOUGHT}\n</think>\n\nso", "reasoning": THOUGHT},
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_reasoning_in_any_spelling_is_one_field(spelling: dict[str, Any]) -> None:
    [made] = normalised([{"role": "assistant", **spelling}])
    expected = THOUGHT if THOUGHT in json.dumps(spelling).replace("\\n", "\n") else THOUGHT[1:]
    assert made == {"role": "assistant", "content": "so", "reasoning_content": expected}


def test_talk_about_markers_is_no_reasoning() -> None:
    for text in ("the <think> and </think> tags", "see </mm:think>", "a <mm:think>b</mm:think>"):
        [made] = normalised([{"role": "assistant", "content": text}])
        assert made == {"role": "assistant", "content": text}


TEXTS = st.text(alphabet="ab \n<", max_size=8)


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(derandomize=True, max_examples=150, deadline=None)
@given(tools(), TEXTS, TEXTS)
def test_what_was_generated_is_replayed_exactly(
    arch: str, made: tuple[Any, Any], reasoning: str, content: str
) -> None:
    """Parsed, sent to the client in its API's form, sent back and rendered: the same text, so
    that its cached prefix serves."""
    reasoning, content = reasoning.strip() or "r", content.strip()
    schema, value = made
    message = {"reasoning_content": reasoning, "content": content}
    text = answer(arch, {**message, "tool_calls": [call_of("f", value)]})
    parser = DialectParser(DIALECTS[arch], Start.THINKING, Tools({"f": schema}))
    got = collected(events_of(parser, [text]))
    call = got["calls"][0]
    function = {"name": call["name"], "arguments": call["arguments"]}
    back = {
        "role": "assistant",
        "reasoning": got["reasoning"],
        "content": [{"type": "text", "text": got["content"]}],
        "tool_calls": [{"id": call["id"], "type": "function", "function": function}],
    }
    assert answer(arch, normalised([back])[0]) == text


# --- calls and results ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("", {}),
        (None, {}),
        ('{"a": "cut he', {"a": "cut he"}),
        ('{"a": [1, {"b": tr', {"a": [1, {"b": None}]}),
        ('{"a": 1, "b', {"a": 1, "b": None}),
        ("{'a': 1}", {"arguments": "{'a': 1}"}),
        ("rm -rf", {"arguments": "rm -rf"}),
        ("[1]", {"arguments": "[1]"}),
    ],
)
def test_arguments_that_came_back(arguments: object, expected: dict[str, Any]) -> None:
    assert arguments_of(arguments) == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(tools(), st.integers(0, 400))
def test_cut_arguments_are_closed(made: tuple[Any, Any], cut: int) -> None:
    """Whatever an answer's end left of the arguments, the next turn renders."""
    text = json.dumps(made[1])[:cut]
    calls = [{"id": "1", "function": {"name": "f", "arguments": text}}]
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": calls}]
    made_messages = normalised(messages)
    assert isinstance(made_messages[1]["tool_calls"][0]["function"]["arguments"], dict)
    for arch in ("m2", "m3"):
        assert '<invoke name="f">' in render(arch, made_messages)


def test_calls_in_every_form_have_their_name_in_both_places() -> None:
    forms = [
        {"function": {"name": "f", "arguments": '{"input": "x"}'}},
        {"name": "f", "arguments": {"input": "x"}},
        {"type": "custom", "custom": {"name": "f", "input": "x"}},
        {"type": "tool_use", "name": "f", "input": {"input": "x"}},
    ]
    for form in forms:
        [made] = normalised([{"role": "assistant", "tool_calls": [{"id": "1", **form}]}])
        call = made["tool_calls"][0]
        assert call["function"] == {"name": "f", "arguments": {"input": "x"}}
        assert (call["name"], call["arguments"]) == ("f", {"input": "x"})
    [old] = normalised([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}])
    assert old["tool_calls"][0]["name"] == "f"
    with pytest.raises(RequestError, match="no function name"):
        normalised([{"role": "assistant", "tool_calls": [{"id": "1"}]}])


def test_results_stand_in_the_order_of_their_calls() -> None:
    calls = [{"id": i, "function": {"name": "f", "arguments": "{}"}} for i in ("a", "b", "c")]
    results = [{"role": "tool", "tool_call_id": i, "content": f"R{i}"} for i in ("c", "a", "b")]
    made = normalised([USER, {"role": "assistant", "tool_calls": calls}, *results, USER])
    assert [message["content"] for message in made[2:5]] == ["Ra", "Rb", "Rc"]
    for result in results:
        result.pop("tool_call_id")
    made = normalised([USER, {"role": "assistant", "tool_calls": calls}, *results])
    assert [message["content"] for message in made[2:]] == ["Rc", "Ra", "Rb"]


def test_a_result_without_a_call_is_what_the_user_says() -> None:
    made = normalised([USER, {"role": "tool", "tool_call_id": "x", "content": "R"}])
    assert made[1] == {"role": "user", "content": "R"}


# --- roles and content ---


def test_system_messages() -> None:
    system, developer = {"role": "system", "content": "S"}, {"role": "developer", "content": "D"}
    assert normalised([system, developer, USER])[0] == {"role": "system", "content": "S\n\nD"}
    assert normalised([USER, system]) == [{"role": "user", "content": "Hi\n\nS"}]
    answered = {"role": "assistant", "content": "A"}
    assert normalised([USER, answered, system])[-1] == {"role": "user", "content": "S"}
    assert normalised([USER, {"role": "system", "content": ""}]) == [USER]


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_a_later_system_message_changes_nothing_before_it(arch: str) -> None:
    chat = [{"role": "system", "content": "S"}, USER, {"role": "assistant", "content": "A"}]
    before = render(arch, normalised(chat))
    after = render(arch, normalised([*chat, {"role": "system", "content": "note"}]))
    assert after.startswith(before)


def test_content_becomes_text_unless_it_is_more() -> None:
    parts = [{"type": "input_text", "text": "a"}, "b", {"type": "text", "text": "c"}]
    assert normalised([{"role": "user", "content": parts}])[0]["content"] == "abc"
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    made = normalised([{"role": "user", "content": [*parts, image]}])[0]["content"]
    assert [part["type"] for part in made] == ["text", "text", "text", "image_url"]
    with pytest.raises(RequestError, match="audio"):
        normalised([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(RequestError, match=r"messages\[0\]\.role"):
        normalised([{"role": "alien", "content": "x"}])


# --- prefix stability ---


def billing(digest: str) -> str:
    version = f"cc_version=2.1.37.{digest[:3]}"
    return f"x-anthropic-billing-header: {version}; cc_entrypoint=cli; cch={digest};"


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("as_parts", [True, False])
def test_volatile_heads_do_not_change_the_prompt(arch: str, as_parts: bool) -> None:
    def system(digest: str, left: str) -> dict[str, Any]:
        texts = [billing(digest), "You are a tool.\n", left]
        if as_parts:
            return {"role": "system", "content": [{"type": "text", "text": t} for t in texts]}
        return {"role": "system", "content": "\n".join(texts)}

    def prompt(*heads: dict[str, Any], rules: Any = None) -> str:
        messages = [*heads, USER]
        kept = (
            with_stable_prefix(messages) if rules is None else with_stable_prefix(messages, rules)
        )
        return render(arch, normalised(kept))

    left = "<total_tokens>{} tokens left</total_tokens>"
    one = prompt(system("fa690", left.format(900)))
    two = prompt(system("00000", left.format(900) + "\n" + left.format(800)))
    assert one == two
    assert "You are a tool." in one and "cch" not in one and "tokens left" not in one
    assert "cch=fa690" in prompt(system("fa690", ""), rules=["token_budget"])
    assert "900 tokens" in prompt(system("fa690", left.format(900)), rules=["billing_header"])


def test_users_may_write_what_the_rules_drop() -> None:
    text = billing("fa690") + "<total_tokens>1 tokens left</total_tokens>"
    messages = [{"role": "user", "content": text}]
    assert normalised(with_stable_prefix(messages)) == messages


def test_kept_thinking_makes_m2_append_only() -> None:
    turn = [
        USER,
        {"role": "assistant", "content": "kept0 A", "reasoning_content": "why {it}"},
    ]
    chat: list[dict[str, Any]] = []
    before = ""
    for _ in range(3):
        chat += turn
        kept = KeptThinking(normalised(chat), DIALECTS["m2"])
        after = kept.restored(render("m2", kept.messages))
        assert after.startswith(before)
        assert after.count("<think>\nwhy {it}\n</think>\n\nkept0 A") == len(chat) // 2
        before = after
    assert not render("m2", normalised(chat + turn)).startswith(before)
