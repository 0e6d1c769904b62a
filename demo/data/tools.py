"""Choosing a tool among several and filling it; several at once; none when none is needed; and
telling what came of it."""

from __future__ import annotations

import json

from demo.data import facts, shapes
from demo.data.conversation import MODES, Conversation, Message, assistant, call, tool_result, user
from demo.data.draw import Draw
from demo.data.shapes import Use
from demo.data.weather import weather_use

_SKIES = ("sunny", "cloudy", "rainy", "windy", "snowy", "clear")
_MAX_TOOLS = 4


def choice_example(draw: Draw) -> Conversation:
    """One call of a tool with plain arguments; in one case of eight a question that needs none."""
    if draw.happens(0.125):
        asked = facts.example(draw)
        tools = [flat_use(draw).tool for _ in range(draw.number(1, 2))]
        check = {**asked.check, "calls": []}
        return Conversation(
            messages=asked.messages, tools=tools, mode=asked.mode, part="none", check=check
        )
    return called(draw, [flat_use(draw)])


def nested_example(draw: Draw) -> Conversation:
    return called(draw, [draw.any(shapes.NESTED).use(draw)])


def weather_example(draw: Draw) -> Conversation:
    use = weather_use(draw)
    others = 0 if draw.happens(0.6) else draw.number(1, 2)
    return called(draw, [use], num_others=others)


def parallel_example(draw: Draw) -> Conversation:
    """Two or three calls of different tools in one answer. No two tools are of one purpose: either
    would do."""
    count = draw.number(2, 3)
    uses: list[Use] = []
    while len(uses) < count:
        use = flat_use(draw)
        if all(use.name != other.name and _described(use) != _described(other) for other in uses):
            uses.append(use)
    return called(draw, uses, num_others=draw.number(0, 1))


def result_example(draw: Draw) -> Conversation:
    """The call, its result, and the answer made of it."""
    use = weather_use(draw)
    city = use.arguments["city"]
    degrees, sky = draw.own(lambda: (draw.number(-9, 39), draw.any(_SKIES)))
    result = json.dumps({"temperature": degrees, "sky": sky})
    mode = draw.any(MODES)
    thinks = mode == "enabled"
    return Conversation(
        messages=[
            user(use.request),
            _call_message([use], thinks),
            tool_result(result),
            assistant(
                f"It is {degrees} degrees and {sky} in {city}.",
                thinking="The tool has answered." if thinks else "",
            ),
        ],
        tools=[use.tool],
        mode=mode,
        part="result",
        check={"contains": [str(degrees), sky, city], "calls": []},
    )


def flat_use(draw: Draw) -> Use:
    kind = draw.rng.random()
    if kind < 0.25:
        return shapes.free_use(draw)
    # Chinese cities, a token or more a sign, are the last that is copied well out of many tools.
    weather = 0.4 if draw.held_out else 0.5
    return weather_use(draw) if kind < weather else draw.any(shapes.FLAT).use(draw)


def called(draw: Draw, uses: list[Use], num_others: int | None = None) -> Conversation:
    """The answer to all requests at once, with ``num_others`` further tools to choose from. In
    training those are asked for in later turns, since reading tools costs more than asking."""
    mode = draw.any(MODES)
    if num_others is None:
        num_others = draw.number(0, _MAX_TOOLS - 1)
    tools = {use.name: use.tool for use in uses}
    descriptions = {_described(use) for use in uses}
    later: list[Use] = []
    for _ in range(num_others):
        other = flat_use(draw)
        if _described(other) not in descriptions and other.name not in tools:
            tools[other.name] = other.tool
            descriptions.add(_described(other))
            later.append(other)
    shuffled = draw.some(list(tools.values()), len(tools))
    request = " ".join(use.request for use in uses)
    calls = [{"name": use.name, "arguments": use.arguments} for use in uses]
    messages = [user(request), _call_message(uses, mode == "enabled")]
    for use in [] if draw.held_out else later:
        messages += [user(use.request), _call_message([use], mode == "enabled")]
    return Conversation(
        messages=messages,
        tools=shuffled,
        mode=mode,
        check={"calls": calls},
    )


def _described(use: Use) -> str:
    return str(use.tool["function"]["description"])


def _call_message(uses: list[Use], thinks: bool) -> Message:
    thought = f"I call {' and '.join(use.name for use in uses)}." if thinks else ""
    calls = [call(use.name, use.arguments, number) for number, use in enumerate(uses)]
    return assistant("", thinking=thought, calls=calls)
