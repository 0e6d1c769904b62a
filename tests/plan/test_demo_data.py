"""The demo's examples: what is trained is what the server sends and what its parser reads back."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from demo.data import (
    SKILLS,
    Conversation,
    arithmetic,
    blank_twins,
    held_out_conversation,
    prompt_of,
    sample_of,
    tokenizer,
    training_sample,
    word_tokens,
)
from demo.data.draw import Draw
from demo.data.mixture import maker_of
from mserve.core import SamplingParams
from mserve.text import (
    Answer,
    ArgumentsDelta,
    CallStarted,
    ContentDelta,
    DialectParser,
    ReasoningDelta,
    Start,
    Tools,
    by_name,
    marker_ids,
)

M3 = by_name("minimax_m3")


def examples(skill: str, count: int, *, held_out: bool = False) -> Iterator[Conversation]:
    draw = Draw(random.Random(f"{skill} {held_out}"), held_out=held_out)
    for _ in range(count):
        yield maker_of(skill, 600)(draw)


def parsed(token_ids: list[int], conversation: Conversation) -> tuple[str, str, list[Any]]:
    """Thinking, content and calls, as the server would tell them from the generated ids."""
    start = {"enabled": Start.THINKING, "disabled": Start.CONTENT, "adaptive": Start.EITHER}
    functions = [tool["function"] for tool in conversation.tools]
    parser = DialectParser(
        M3,
        start[conversation.mode],
        Tools({function["name"]: function["parameters"] for function in functions}),
        marker_ids=marker_ids(M3, tokenizer()),
    )
    answer = Answer(tokenizer(), SamplingParams(skip_special_tokens=True), parser)
    events = [*answer.push(token_ids).events, *answer.finish()]
    thinking = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    names = [event.name for event in events if isinstance(event, CallStarted)]
    arguments = [""] * len(names)
    for event in events:
        if isinstance(event, ArgumentsDelta):
            arguments[event.index] += event.text
    return thinking, content, list(zip(names, map(json.loads, arguments), strict=True))


def answers_in(token_ids: list[int], mask: list[int]) -> list[list[int]]:
    """The runs of tokens that the mask marks."""
    edges = [i for i, (a, b) in enumerate(pairwise([0, *mask, 0])) if a != b]
    return [token_ids[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("skill", SKILLS)
def test_every_answer_is_parsed_as_it_was_written(skill: str, held_out: bool) -> None:
    for conversation in examples(skill, 25, held_out=held_out):
        written = [turn for turn in conversation.messages if turn["role"] == "assistant"]
        written = written[conversation.given_turns :]
        answers = answers_in(*sample_of(conversation))
        assert len(answers) == len(written)
        for ids, turn in zip(answers, written, strict=True):
            calls = [
                (call["function"]["name"], call["function"]["arguments"])
                for call in turn.get("tool_calls", [])
            ]
            thinking = turn.get("reasoning_content", "")
            assert tokenizer().decode(ids[-1:], skip_special_tokens=False) == "[e~["
            assert parsed(ids[:-1], conversation) == (thinking, turn["content"], calls)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_prompt_is_followed_by_the_answer(skill: str) -> None:
    for conversation in examples(skill, 10):
        prompt, (ids, mask) = prompt_of(conversation), sample_of(conversation)
        assert ids[: len(prompt)] == prompt
        end = tokenizer().encode("\n", add_special_tokens=False)
        assert ids[len(prompt) :] == [*answers_in(ids, mask)[-1], *end]


@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_asked_in_tests_was_not_taught(skill: str) -> None:
    """A first user's words of one side never come from the other; facts stay, their wording
    does not."""
    taught = {conversation.messages[0]["content"] for conversation in examples(skill, 300)}
    asked = {turn.messages[0]["content"] for turn in examples(skill, 100, held_out=True)}
    shared = taught & asked
    # A name told in an earlier turn may be one that was told in training.
    limit = {"turns": 0.9, "forms": 0.2}.get(skill, 0.0)
    assert len(shared) <= limit * len(asked), sorted(shared)[:5]


def test_a_difference_is_of_one_side_whichever_number_came_first() -> None:
    taught, asked = (
        {problem for problem in problems if problem[0] == "-"}
        for draw in (Draw(random.Random(side), held_out=bool(side)) for side in (0, 1))
        if (problems := [arithmetic.problem(draw) for _ in range(20_000)])
    )
    assert len(taught) > 1000 and len(asked) > 1000
    assert not taught & asked
    assert all(a >= b for _, a, b in taught | asked)


def test_tests_use_only_tokens_that_are_taught() -> None:
    """Not one of them depends on an embedding that no example ever moved."""
    taught: Counter[int] = Counter()
    for skill in SKILLS:
        rng = random.Random(skill)
        for _ in range(300):
            taught.update(training_sample(rng, 700, skill=skill)[0])
    for skill in SKILLS:
        asked: Counter[int] = Counter()
        for conversation in examples(skill, 40, held_out=True):
            asked.update(set(prompt_of(conversation)))
        new = {tokenizer().token_bytes(i): n for i, n in asked.items() if not taught[i] and n > 4}
        assert not new, (skill, new)


def test_a_seed_says_it_all() -> None:
    first, second = (
        [training_sample(random.Random(seed), 512) for seed in range(20)] for _ in range(2)
    )
    assert first == second
    assert len({tuple(ids) for ids, _ in first}) == 20


@pytest.mark.parametrize("max_tokens", [300, 700, 2000])
def test_samples_keep_to_their_size(max_tokens: int) -> None:
    rng = random.Random(max_tokens)
    lengths = []
    for _ in range(40):
        ids, mask = training_sample(rng, max_tokens, skill="needle")
        assert len(ids) == len(mask) <= max_tokens
        lengths.append(len(ids))
    assert max(lengths) > 0.6 * max_tokens


@pytest.mark.parametrize("num_tokens", [1000, 4000, 12000])
def test_needles_have_the_size_that_was_asked(num_tokens: int) -> None:
    conversation = held_out_conversation(random.Random(1), "needle", num_tokens=num_tokens)
    assert 0.93 * num_tokens < len(prompt_of(conversation)) < 1.07 * num_tokens + 150


def test_word_tokens_are_those_of_keys_and_values() -> None:
    known = set(word_tokens())
    for conversation in examples("lookup", 30):
        said = conversation.messages[-1]["content"].replace("is not found.", "").replace("->", "")
        ids = tokenizer().encode(said.strip(), add_special_tokens=False)
        assert set(ids) <= known | set(tokenizer().encode(" ", add_special_tokens=False))
    assert len(known) < 0.5 * tokenizer().vocab_size


def test_blank_twins_differ_by_a_blank() -> None:
    for with_blank, without in blank_twins():
        text = tokenizer().decode([with_blank], skip_special_tokens=False)
        assert text == " " + tokenizer().decode([without], skip_special_tokens=False)
    paris = [tokenizer().encode(text, add_special_tokens=False)[0] for text in (" Paris", "Paris")]
    assert tuple(paris) in blank_twins()
