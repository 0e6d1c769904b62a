"""Facts: the same few hundred ones, asked in many ways. Tests ask them in ways not taught."""

from __future__ import annotations

from typing import NamedTuple

from demo.data import known
from demo.data.conversation import MODES, Conversation, assistant, user
from demo.data.draw import Draw


class Subject(NamedTuple):
    """``{k}`` stands for the key, ``{v}`` for the answer. The last question is held out."""

    facts: dict[str, str]
    questions: tuple[str, ...]
    answer: str
    thought: str


SUBJECTS = {
    "capital": Subject(
        known.CAPITALS,
        (
            "What is the capital of {k}?",
            "What is the capital city of {k}?",
            "Which city is the capital of {k}?",
            "Name the capital of {k}.",
            "Tell me the capital of {k}.",
            "The capital of {k} is what?",
            "{k}: what is its capital?",
            "Do you know the capital of {k}?",
            "what's the capital of {k}",
            "capital of {k}",
            "{k} capital",
            "Can you tell me the capital of {k}?",
            "Please tell me what the capital of {k} is.",
        ),
        "The capital of {k} is **{v}**.",
        "The user asks for the capital of {k}. It is {v}.",
    ),
    "chinese capital": Subject(
        known.CHINESE_CAPITALS,
        (
            "{k}的首都是哪里?",
            "{k}的首都是什么?",
            "请告诉我{k}的首都。",
            "请告诉我{k}的首都是哪里。",
        ),
        "{k}的首都是{v}。",
        "用户问{k}的首都。是{v}。",
    ),
    "symbol": Subject(
        known.SYMBOLS,
        (
            "What is the chemical symbol of {k}?",
            "What is the symbol for {k}?",
            "Tell me the chemical symbol for {k}.",
            "Which symbol does {k} have?",
            "Name the chemical symbol of {k}.",
        ),
        "The chemical symbol of {k} is {v}.",
        "The user asks for the symbol of {k}. It is {v}.",
    ),
    "opposite": Subject(
        known.OPPOSITES,
        (
            'What is the opposite of "{k}"?',
            "What is the opposite of {k}?",
            "Tell me the opposite of {k}.",
            "Which word is the opposite of {k}?",
            "Name the opposite of {k}.",
        ),
        "The opposite of {k} is {v}.",
        "The user asks for the opposite of {k}. It is {v}.",
    ),
    "currency": Subject(
        known.CURRENCIES,
        (
            "What is the currency of {k}?",
            "Which currency is used in {k}?",
            "Tell me the currency of {k}.",
            "What money is used in {k}?",
            "Name the currency of {k}.",
        ),
        "The currency of {k} is {v}.",
        "The user asks for the currency of {k}. It is {v}.",
    ),
    "young": Subject(
        known.YOUNG,
        (
            "What is a young {k} called?",
            "What do you call a baby {k}?",
            "What is a baby {k} called?",
            "How is a young {k} called?",
        ),
        "A young {k} is called a {v}.",
        "The user asks for the name of a young {k}. It is {v}.",
    ),
    "continent": Subject(
        known.CONTINENTS,
        (
            "On which continent is {k}?",
            "Which continent is {k} on?",
            "{k} is on which continent?",
            "What continent is {k} on?",
        ),
        "{k} is in {v}.",
        "The user asks for the continent of {k}. It is {v}.",
    ),
    "count": Subject(
        known.COUNTS,
        (
            "How many {k} are there?",
            "How many {k}?",
            "What is the number of {k}?",
            "Can you tell me how many {k} there are?",
            "Tell me how many {k} there are.",
        ),
        "There are {v} {k}.",
        "The user asks for the number of {k}. It is {v}.",
    ),
    "author": Subject(
        known.MAKERS,
        (
            "Who wrote {k}?",
            "Who is the author of {k}?",
            "By whom is {k}?",
            "Can you tell me who wrote {k}?",
            "Tell me who wrote {k}.",
        ),
        "{k} was written by {v}.",
        "The user asks for the author of {k}. It is {v}.",
    ),
}

_SUBJECTS = [
    name for name, subject in SUBJECTS.items() for _ in range(1 + len(subject.facts) // 20)
]


def fact(draw: Draw) -> tuple[Subject, str, str]:
    """A subject, a key and its answer."""
    subject = SUBJECTS[draw.any(_SUBJECTS)]
    key = draw.any(list(subject.facts))
    return subject, key, subject.facts[key]


def example(draw: Draw) -> Conversation:
    """Thinking shows in every mode that allows it."""
    subject, key, value = fact(draw)
    mode = draw.any(MODES)
    thought = "" if mode == "disabled" else subject.thought.format(k=key, v=value)
    question = draw.phrase(subject.questions).format(k=key)
    return Conversation(
        messages=[
            user(question),
            assistant(subject.answer.format(k=key, v=value), thinking=thought),
        ],
        mode=mode,
        check={"contains": [value], "thinks": mode != "disabled"},
    )
