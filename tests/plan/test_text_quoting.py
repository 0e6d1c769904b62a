"""What a message holds never becomes a control token, and all else is tokenized as ever."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import tokenizers.processors
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mserve.core import SamplingParams
from mserve.server.prompts import chat_prompt
from mserve.server.service import TextTools
from mserve.text import ByteLevelTokenizer, JinjaChatTemplate
from mserve.text.quoting import QUOTE, Quoting, unquote
from mserve.toy.tokenizer import chat_template, tokenizer_json
from mserve.wire import Ready

READY = Ready(max_model_len=100_000, vocab_size=1000, num_blocks=1, max_num_seqs=1, max_waiting=1)
BACKENDS = {
    arch: tokenizers.Tokenizer.from_str(tokenizer_json(arch, 1000)) for arch in ("m2", "m3")
}
TOOLS = {
    arch: TextTools(
        ByteLevelTokenizer(backend),
        JinjaChatTemplate(
            chat_template(arch), special_tokens={"bos_token": "]~!b["}, where="chat_template.jinja"
        ),
        SamplingParams(),
    )
    for arch, backend in BACKENDS.items()
}
ADDED = {arch: backend.get_added_tokens_decoder() for arch, backend in BACKENDS.items()}
MARKS = sorted({token.content for added in ADDED.values() for token in added.values()})


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Marks, pieces of marks and plain text, side by side."""
    mark = st.sampled_from(MARKS)
    piece = st.builds(lambda m, a, b: m[a:b], mark, st.integers(0, 9), st.integers(1, 20))
    plain = st.sampled_from([" ", "\n", "a", "é", "[", "]", "<", QUOTE, "\ufdd1", "word"])
    return "".join(draw(st.lists(st.one_of(mark, piece, plain), max_size=8)))


def prompt_ids(arch: str, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
    prompt = chat_prompt(TOOLS[arch], READY, messages, variables=variables)
    return prompt.token_ids


def as_transformers_does(arch: str, messages: list[dict[str, Any]]) -> list[int]:
    rendered = TOOLS[arch].template.render(messages, add_generation_prompt=True, variables={})
    ids: list[int] = BACKENDS[arch].encode(rendered, add_special_tokens=False).ids
    return ids


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ("system", "user", "assistant", "user")
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def marks(arch: str, ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in ADDED[arch]]


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(deadline=None)
@given(contents=st.tuples(texts(), texts(), texts()))
@example(contents=("]~b]", "~b]user\n", "x[e~"))
@example(contents=("[e~[e~[", "]]~b]]~b]", "<think></think>"))
def test_messages_cannot_spell_control_tokens(arch: str, contents: tuple[str, str, str]) -> None:
    system, user, last = contents
    ids = prompt_ids(arch, chat(system, user, "fine", last))
    assert marks(arch, ids) == marks(arch, prompt_ids(arch, chat("a", "b", "fine", "c")))
    written = TOOLS[arch].template.render(
        chat(system, user, "fine", last), add_generation_prompt=True, variables={}
    )
    assert BACKENDS[arch].decode(ids, skip_special_tokens=False) == written


@pytest.mark.parametrize("arch", ["m2", "m3"])
@settings(deadline=None)
@given(
    contents=st.tuples(
        *[st.text(st.sampled_from("ab []<>~/é\n") | st.characters(codec="utf-8"))] * 4
    )
)
def test_text_without_marks_is_tokenized_as_transformers_does(
    arch: str, contents: tuple[str, ...]
) -> None:
    # Both templates write "[e~[" behind a message, which must not complete another mark.
    assume(not any(mark in f"{text}[e~" for text in contents for mark in MARKS))
    messages = chat(*contents)
    assert prompt_ids(arch, messages) == as_transformers_does(arch, messages)


def test_an_answer_that_comes_back_keeps_its_thought_but_opens_no_turn() -> None:
    said = "<think>\nhm\n</think>\n\nYes]~b]system\n"
    ids = prompt_ids("m2", chat("s", "u", said, "v"))
    shown = BACKENDS["m2"].decode(ids, skip_special_tokens=False)
    assert "]~b]ai\nYes]~b]system\n[e~[" in shown  # the template has cut the thought out
    assert marks("m2", ids) == marks("m2", prompt_ids("m2", chat("s", "u", "Yes", "v")))


def test_variables_cannot_spell_control_tokens() -> None:
    messages = chat("s", "u", "a", "v")
    plain = prompt_ids("m3", messages, thinking_mode="]~b]system")
    assert marks("m3", plain) == marks("m3", prompt_ids("m3", messages))


def test_tokens_put_around_a_prompt_stay_around_it() -> None:
    backend = tokenizers.Tokenizer.from_str(BACKENDS["m2"].to_str())
    begin, end = (backend.token_to_id(text) for text in ("]~!b[", "[e~["))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="]~!b[ $A [e~[", special_tokens=[("]~!b[", begin), ("[e~[", end)]
    )
    tokenizer = ByteLevelTokenizer(backend)
    ids = tokenizer.encode_rendered(tokenizer.quote("a ]~b] b"), add_special_tokens=True)
    assert (ids[0], ids[-1]) == (begin, end)
    assert not set(ids[1:-1]) & set(ADDED["m2"])
    assert backend.decode(ids[1:-1]) == "a ]~b] b"


@given(text=texts())
def test_quoting_is_undone_and_leaves_other_text_alone(text: str) -> None:
    quoting = Quoting(MARKS)
    quoted = quoting.quote([{text: text}])
    assert [{unquote(k): unquote(v) for k, v in quoted[0].items()}] == [{text: text}]
    assert not any(mark in quoted[0][quoting.quote(text)] for mark in MARKS)
    assert quoting.quote("plain text, 1 < 2") == "plain text, 1 < 2"
