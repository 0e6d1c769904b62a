"""Free text first, then the grammar: where one ends and the other begins, token by token."""

import json
import random

import numpy as np
import pytest
from grammar_cases import VOCAB_SIZE, Writer, allowed_ids, family
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import Constraint, FreeText, RequestError
from mserve.matcher import MAX_ROLLBACK, Follower, Matcher, Vocabulary, VocabularyFacts
from mserve.text import CallFinished, ContentDelta
from mserve.text.dialects import Start
from mserve.text.grammar import Tool, constraint_for

LETTERS = "start: /[ab]{2}/"
THINKING = FreeText(ends_with="</think>")
quick = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def vocabulary(*tokens, control=(b"<end>", b"</think>", b"<think>")):
    """Single bytes, then ``tokens``, then control tokens, the first of which ends a text."""
    every = [bytes([value]) for value in range(256)] + list(tokens)
    first = len(every)
    ids = range(first, first + len(control))
    return Vocabulary(VocabularyFacts([*every, *control], tuple(ids), (first,)))


def ids_of(vocabulary, *tokens):
    """The last token with these bytes: a control token before one that is spelled alike."""
    tokens_by_id = vocabulary.facts.tokens
    return [max(i for i, known in enumerate(tokens_by_id) if known == t) for t in tokens]


def allowed(follower, vocabulary):
    choice = follower.choice()
    size = len(vocabulary.facts.tokens)
    if hasattr(choice, "mask"):
        bits = np.unpackbits(choice.mask.view(np.uint8), bitorder="little")[:size]
        found = set(np.flatnonzero(bits).tolist())
    else:
        found = set(range(size)) - set(choice.token_ids.tolist())
    return {vocabulary.facts.tokens[i] for i in found}


def accept(follower, vocabulary, *tokens):
    for token_id in ids_of(vocabulary, *tokens):
        follower.accept(token_id)


@pytest.mark.parametrize("spelling", [[b"</think>"], [b"x<", b"/thi", b"nk", b">"], [*b"</think>"]])
def test_the_grammar_begins_after_the_marker_however_it_is_spelled(spelling):
    vocab = vocabulary(b"x<", b"/thi", b"nk")
    follower = Follower(Constraint(grammar=LETTERS, after=(THINKING,)), vocab)
    tokens = [token if isinstance(token, bytes) else bytes([token]) for token in spelling]
    for token in tokens:
        assert b"z" in allowed(follower, vocab) and b"<end>" not in allowed(follower, vocab)
        accept(follower, vocab, token)
    assert allowed(follower, vocab) == {b"a", b"b"}
    accept(follower, vocab, b"a", b"b")
    assert allowed(follower, vocab) == {b"<end>"}


def test_no_token_runs_over_the_end_of_a_marker():
    vocab = vocabulary(b">a", b">", b"k>{", b"</think>z", b">>", b"</", b"think")
    follower = Follower(Constraint(grammar=LETTERS, after=(THINKING,)), vocab)
    assert {b">a", b"k>{"} <= allowed(follower, vocab)
    assert b"</think>z" not in allowed(follower, vocab)
    accept(follower, vocab, b"</", b"t", b"h", b"i", b"n")
    assert b"k>{" not in allowed(follower, vocab) and b">a" in allowed(follower, vocab)
    accept(follower, vocab, b"k")
    assert {b">a", b">>"}.isdisjoint(allowed(follower, vocab)) and b">" in allowed(follower, vocab)


def test_the_first_token_decides_whether_there_is_thinking():
    vocab = vocabulary()
    thinking = FreeText(ends_with="</think>", begins_with="<think>")
    for first, then in ((b"<think>", b"z"), (b"</think>", b"a"), (b"a", b"b")):
        follower = Follower(Constraint(grammar=LETTERS, after=(thinking,)), vocab)
        assert allowed(follower, vocab) == {b"a", b"b", b"<think>", b"</think>"}
        accept(follower, vocab, first)
        assert then in allowed(follower, vocab)
        assert (b"z" in allowed(follower, vocab)) == (first == b"<think>")


def test_free_text_may_end_where_it_may():
    vocab = vocabulary()
    for may_end in (True, False):
        part = FreeText(ends_with="</think>", may_end=may_end, forbidden_ids=(65,))
        follower = Follower(Constraint(grammar=LETTERS, after=(part,)), vocab)
        assert (b"<end>" in allowed(follower, vocab)) == may_end
        assert b"A" not in allowed(follower, vocab)


def test_what_the_grammar_does_not_allow_is_an_error():
    vocab = vocabulary()
    follower = Follower(Constraint(grammar=LETTERS), vocab)
    with pytest.raises(RequestError, match="cannot be used"):
        accept(follower, vocab, b"c")
    with pytest.raises(RequestError, match="cannot be used"):
        Follower(Constraint(grammar="start: ("), vocab)


@quick
@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_rolling_back_is_as_if_it_had_not_been(seed, data):
    """Drafts: some tokens are taken on trial, some of them taken back, at any place."""
    who = family("m3")
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    tools = [Tool("f", schema, strict=True)]
    constraint = constraint_for(
        who.dialect, who.marker_ids, Start.EITHER, tools=tools, tool_choice="required"
    ).constraint
    whole = Writer(who, seed, patience=20).write(constraint)
    follower = Follower(constraint, who.vocabulary)
    place = 0
    while place < len(whole):
        trial = data.draw(st.integers(0, min(8, len(whole) - place)))
        before = allowed_ids(follower.choice())
        for token_id in whole[place : place + trial]:
            follower.accept(token_id)
        follower.rollback(trial)
        assert allowed_ids(follower.choice()) == before
        step = data.draw(st.integers(1, MAX_ROLLBACK))
        for token_id in whole[place : place + step]:
            assert token_id in allowed_ids(follower.choice())
            follower.accept(token_id)
        place += step


def test_a_matcher_says_what_may_come():
    """Against all texts of the grammar, spelled byte by byte."""
    vocab = vocabulary(b"ab", b"ba", b"bb")
    texts = {b"ab", b"abba", b"b"}
    chooser = random.Random(1)
    for _ in range(50):
        matcher, text = Matcher('start: "ab" | "abba" | "b"', vocab), b""
        while True:
            bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
            found = {vocab.facts.tokens[i] for i in np.flatnonzero(bits[: vocab.size])}
            expected = {
                token
                for token in vocab.facts.tokens
                if any(whole.startswith(text + token) for whole in texts)
            } | ({b"<end>"} if text in texts else set())
            # Where the text is forced, the library may insist on one of its spellings.
            assert found <= expected and found
            token = chooser.choice(sorted(found))
            matcher.accept(ids_of(vocab, token)[0])
            if token == b"<end>":
                break
            text += token


@pytest.mark.parametrize("name", ["m2", "m3"])
def test_calls_are_constrained_only_once_they_begin(name):
    """``auto`` with a strict tool: content is free, a call is not."""
    who = family(name)
    tools = [
        Tool("f", {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}, True)
    ]
    start = Start.THINKING
    found = constraint_for(who.dialect, who.marker_ids, start, tools=tools)
    opening = who.dialect.tag(who.dialect.block_open)
    said = who.encode(f"hm{who.dialect.think_close}Let me see.{opening}")
    follower = Follower(found.constraint, who.vocabulary)
    for token_id in said:
        assert len(allowed_ids(follower.choice())) > VOCAB_SIZE // 2
        follower.accept(token_id)
    token_ids = [*said, *_rest(who, follower)]
    events = who.events(token_ids, start, tools)
    assert "".join(e.text for e in events if isinstance(e, ContentDelta)).strip() == "Let me see."
    calls = [event for event in events if isinstance(event, CallFinished)]
    assert calls and all(json.loads(call.arguments) == {"n": 7} for call in calls)


def _rest(who, follower):
    chooser, token_ids = random.Random(2), []
    while not token_ids or token_ids[-1] != who.eos_id:
        token_ids.append(chooser.choice(allowed_ids(follower.choice())))
        follower.accept(token_ids[-1])
    return token_ids


@pytest.mark.parametrize("name", ["m2", "m3"])
def test_without_a_choice_no_call_can_be_written(name):
    who = family(name)
    found = constraint_for(
        who.dialect, who.marker_ids, Start.THINKING, tools=[Tool("f")], tool_choice="none"
    )
    follower = Follower(found.constraint, who.vocabulary)
    opener = who.dialect.mark or who.dialect.block_open
    for token_id in who.encode(f"hm{who.dialect.think_close}yes"):
        assert who.one_token(opener) not in allowed_ids(follower.choice())
        follower.accept(token_id)
    assert who.eos_id in allowed_ids(follower.choice())
