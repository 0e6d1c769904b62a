"""A toy's tokenizer and chat templates, with the tokenizers and jinja2 libraries as readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mserve.toy.config import config_json
from mserve.toy.shape import PRESETS, ToyShape
from mserve.toy.tokenizer import chat_template, tokenizer_json

M2 = Tokenizer.from_str(tokenizer_json("m2", 32000))
M3 = Tokenizer.from_str(tokenizer_json("m3", 32000))


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_round_trips(text: str) -> None:
    for tokenizer in (M2, M3):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("vocab_size", [320, 512, 5000, 32000, 200064])
def test_any_size_is_filled_with_decodable_tokens(vocab_size: int) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json("m3", vocab_size))
    assert tokenizer.get_vocab_size() == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    assert all(tokenizer.decode([token_id]) for token_id in range(0, vocab_size - 64, 97))
    text = "Any text, ünïcode 日本 included."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_english_takes_few_tokens_per_word() -> None:
    text = "The server plans one step, runs it on every rank, and settles what came of it."
    assert len(M3.encode(text).ids) < 2 * len(text.split())


@pytest.mark.parametrize("vocab_size", [320, 32000])
def test_special_ids_keep_their_offsets(vocab_size: int) -> None:
    shape = ToyShape(vocab_size=vocab_size)
    first = vocab_size - 64
    offsets = {"]!p~[": 0, "]~b]": 19, "[e~[": 20, "]!d~[": 21, "]~!b[": 34, "]<]image[>[": 25}
    for arch, visible in (
        ("m2", {"<think>": 50, "</think>": 51, "<minimax:tool_call>": 52}),
        ("m3", {"]<]minimax[>[": 58, "<mm:think>": 59, "</mm:think>": 60}),
    ):
        tokenizer = Tokenizer.from_str(tokenizer_json(arch, vocab_size))
        for token, offset in (offsets | visible).items():
            assert tokenizer.encode(token).ids == [first + offset]
            shown = tokenizer.decode([first + offset], skip_special_tokens=True)
            assert shown == (token if token in visible else "")
        config = config_json(arch, shape)
        assert config["bos_token_id"] == first + 34
        assert config["eos_token_id"] == first + 20


def test_the_same_bytes_every_time() -> None:
    assert tokenizer_json("m3", 4000) == tokenizer_json("m3", 4000)
    assert json.loads(tokenizer_json("m2", 4000))["model"]["type"] == "BPE"


def test_presets_leave_room_for_text() -> None:
    for preset in PRESETS.values():
        assert preset.shape.vocab_size > 8000


def render(arch: str, messages: list[dict[str, Any]], **settings: Any) -> str:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.Undefined)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(chat_template("m2" if arch == "m2" else "m3"))
    return template.render(messages=messages, **settings)


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes.", "reasoning_content": "Why not?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"function": {"name": "f", "arguments": {"a": "x y", "b": [1, {"c": True}], "d": None}}}
    ],
}
RESULTS = [{"role": "tool", "content": "one"}, {"role": "tool", "content": "two"}]


def test_m2_prompt() -> None:
    text = render("m2", [{"role": "system", "content": "S"}, USER], add_generation_prompt=True)
    assert text == "]~!b[]~b]system\nS[e~[\n]~b]user\nHi[e~[\n]~b]ai\n<think>\n"


def test_m2_shows_reasoning_after_the_last_user_only() -> None:
    text = render("m2", [USER, ANSWER, USER, ANSWER])
    assert text.count("Why not?") == 1
    assert text.endswith("]~b]ai\n<think>\nWhy not?\n</think>\n\nYes.[e~[\n")
    assert "]~b]ai\nYes.[e~[\n" in text


def test_m2_tools() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    text = render("m2", [USER, CALL, *RESULTS], tools=[tool])
    assert '<tools>\n<tool>{"name": "f", "parameters": {}}</tool>\n</tools>' in text
    assert (
        '\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">x y</parameter>\n'
        '<parameter name="b">[1, {"c": true}]</parameter>\n<parameter name="d">null</parameter>\n'
        "</invoke>\n</minimax:tool_call>[e~[\n"
    ) in text
    responses = "]~b]tool\n<response>one</response>\n<response>two</response>[e~[\n"
    assert text.endswith(responses)


@pytest.mark.parametrize(
    ("mode", "start"),
    [(None, ""), ("adaptive", ""), ("enabled", "<mm:think>"), ("disabled", "</mm:think>")],
)
def test_m3_prompt(mode: str | None, start: str) -> None:
    text = render("m3", [USER], add_generation_prompt=True, thinking_mode=mode)
    assert text.startswith("]~!b[]~b]system\n")
    assert f"Current thinking mode: {mode or 'adaptive'}." in text
    expected = "[e~[\n]~b]developer\nYou are a helpful assistant.[e~[\n]~b]user\nHi[e~[\n]~b]ai\n"
    assert text.endswith(expected + start)


def test_m3_history_only_grows() -> None:
    """A later turn extends the earlier prompt, so that its cache serves."""
    chat: list[dict[str, Any]] = []
    before = render("m3", chat)
    for turn in [USER, ANSWER, USER, CALL, *RESULTS, USER, ANSWER]:
        chat.append(turn)
        if turn["role"] == "tool":
            continue
        after = render("m3", chat)
        assert after.startswith(before)
        before = after
    assert "]~b]ai\n<mm:think>Why not?</mm:think>Yes.[e~[\n" in before
    assert before.count("Why not?") == 2


def test_m3_tools_nest() -> None:
    ns = "]<]minimax[>["
    text = render("m3", [USER, CALL, *RESULTS])
    assert (
        f'</mm:think>{ns}<tool_call>\n{ns}<invoke name="f">{ns}<a>x y{ns}</a>'
        f"{ns}<b>{ns}<item>1{ns}</item>{ns}<item>{ns}<c>true{ns}</c>{ns}</item>{ns}</b>"
        f"{ns}</invoke>\n{ns}</tool_call>[e~[\n"
    ) in text
    assert text.endswith("]~b]tool\n<response>one</response>\n<response>two</response>[e~[\n")


def test_content_may_be_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}
    assert "]~b]user\na]<]image[>[[e~[\n" in render("m3", [parts])
    assert "]~b]user\na[e~[\n" in render("m2", [parts])


def test_package_data_is_declared() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert '"**/*.jinja", "**/*.txt"' in project.read_text()
