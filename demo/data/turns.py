"""Conversations whose last question can only be understood from an earlier turn."""

from __future__ import annotations

from demo.data import arithmetic, known, words
from demo.data.conversation import MODES, Conversation, Message, ThinkingMode, assistant, user
from demo.data.draw import Draw
from demo.data.facts import SUBJECTS

_NAME_SAID = ("My name is {name}.", "I am {name}.", "Hello, I am {name}.", "Hi! My name is {name}.")
_NAME_ASKED = ("What is my name?", "Who am I?", "Tell me my name.", "Do you remember my name?")
_LIKE_SAID = ("My favorite {thing} is {value}.", "I like the {thing} {value} best.")
_LIKE_ASKED = (
    "What is my favorite {thing}?",
    "Which {thing} do I like best?",
    "Tell me my favorite {thing}.",
    "Do you remember my favorite {thing}?",
)
_AGAIN = (
    *("And of {k}?", "And the one of {k}?", "What about {k}?", "And that of {k}?"),
    *("How about {k}?", "And what about {k}?", "{k}?", "Now {k}.", "And {k}?"),
)
_MORE = (
    *("Add {m} to that.", "Add {m} to it.", "Now add {m}.", "And add {m}?", "Plus {m}?"),
    *("Now add {m} to that.", "And what is that plus {m}?", "And plus {m}?"),
)
_THINGS = {"color": words.COLORS, "city": words.CITIES, "food": words.FOODS, "day": words.DAYS}


def example(draw: Draw) -> Conversation:
    return draw.any((_name, _favorite, _capital_again, _sum_again))(draw)


def _name(draw: Draw) -> Conversation:
    mode = draw.any(MODES)
    name = draw.one(words.NAMES)
    turns = [
        user(draw.any(_NAME_SAID).format(name=name)),
        _said(mode, f"Nice to meet you, {name}.", "The user tells a name."),
        *_between(draw, mode),
        user(draw.phrase(_NAME_ASKED)),
        _said(mode, f"Your name is {name}.", "The user asks for the name."),
    ]
    return Conversation(messages=turns, mode=mode, part="name", check={"contains": [name]})


def _favorite(draw: Draw) -> Conversation:
    mode = draw.any(MODES)
    thing = draw.any(list(_THINGS))
    value = draw.any(_THINGS[thing])
    turns = [
        user(draw.any(_LIKE_SAID).format(thing=thing, value=value)),
        _said(mode, f"I will remember that you like {value}.", "The user tells a favorite."),
        *_between(draw, mode),
        user(draw.phrase(_LIKE_ASKED).format(thing=thing)),
        _said(mode, f"Your favorite {thing} is {value}.", "The user asks for the favorite."),
    ]
    return Conversation(messages=turns, mode=mode, part="favorite", check={"contains": [value]})


def _capital_again(draw: Draw) -> Conversation:
    """``And of Italy?``: the subject is that of the question before."""
    mode: ThinkingMode = draw.any(("adaptive", "enabled", "disabled"))
    name = draw.any(("capital", "currency"))
    subject, turns = SUBJECTS[name], []
    facts = {k: v for k, v in subject.facts.items() if k in known.CAPITALS}
    for number, key in enumerate(draw.some(list(facts), draw.number(2, 3))):
        asked = subject.questions[0] if not number else draw.phrase(_AGAIN)
        turns.append(user(asked.format(k=key)))
        thought = "" if mode == "disabled" else subject.thought.format(k=key, v=facts[key])
        answer = subject.answer.format(k=key, v=facts[key])
        turns.append(assistant(answer, thinking=thought))
    return Conversation(
        messages=turns, mode=mode, part="same subject", check={"contains": [facts[key]]}
    )


def _sum_again(draw: Draw) -> Conversation:
    """``Add 7 to that.``: the number is that of the answer before."""
    mode: ThinkingMode = draw.any(("adaptive", "enabled"))
    sign, a, b = arithmetic.problem(draw)
    first = arithmetic.value(sign, a, b)
    more = draw.number(2, 99)
    turns = [
        user(f"What is {a} {sign} {b}?"),
        _worked(sign, a, b),
        user(draw.phrase(_MORE).format(m=more)),
        _worked("+", first, more),
    ]
    check = {"contains": [str(first + more)]}
    return Conversation(messages=turns, mode=mode, part="same number", check=check)


def _worked(sign: str, a: int, b: int) -> Message:
    said = f"{a} {sign} {b} = {arithmetic.value(sign, a, b)}."
    return assistant(said, thinking=arithmetic.worked(sign, a, b))


def _between(draw: Draw, mode: ThinkingMode) -> list[Message]:
    """Perhaps another turn, about something else."""
    if draw.happens(0.5):
        return []
    text = f"{draw.any(words.ADJECTIVES)} {draw.any(words.NOUNS)}"
    return [user(f"Repeat: {text}"), _said(mode, text, "I repeat the text.")]


def _said(mode: ThinkingMode, text: str, thought: str) -> Message:
    """Such answers are thought about only where thinking is asked for."""
    return assistant(text, thinking=thought if mode == "enabled" else "")
