"""JSON by schema: what a sentence says, in the keys that are asked for."""

from __future__ import annotations

import json
from typing import Any

from demo.data import words
from demo.data.conversation import MODES, Conversation, assistant, user
from demo.data.draw import Draw

_TYPES = {str: "string", int: "integer", bool: "boolean"}
_ASKS = (
    "{text} Answer as JSON by this schema: {schema}",
    "{text} Give me JSON by this schema: {schema}",
    "{text} Write it as JSON. Schema: {schema}",
    "{text} As JSON by this schema, please: {schema}",
    "{text} Please answer as JSON by this schema: {schema}",
)


def example(draw: Draw) -> Conversation:
    """In half of the cases the request also carries the schema, so that the server enforces it."""
    text, value = draw.any((_person, _product, _visit, _visit, _numbers))(draw)
    schema = schema_of(value)
    mode = draw.any(MODES)
    asked = draw.phrase(_ASKS).format(text=text, schema=json.dumps(schema))
    return Conversation(
        messages=[
            user(asked),
            assistant(json.dumps(value), thinking="I write JSON." if mode == "enabled" else ""),
        ],
        mode=mode,
        check={"json": value},
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
        if draw.happens(0.5)
        else None,
    )


def schema_of(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        properties = {key: schema_of(item) for key, item in value.items()}
        return {"type": "object", "properties": properties, "required": list(value)}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0])}
    return {"type": _TYPES[type(value)]}


def _person(draw: Draw) -> tuple[str, dict[str, Any]]:
    name, city = draw.own(lambda: (draw.any(words.NAMES), draw.any(words.CITIES)))
    age = draw.number(1, 99)
    text = f"{name} is {age} years old and lives in {city}."
    return text, _shuffled(draw, {"name": name, "age": age, "city": city})


def _product(draw: Draw) -> tuple[str, dict[str, Any]]:
    color, noun = draw.own(lambda: (draw.any(words.COLORS), draw.any(words.NOUNS)))
    price, sold = draw.number(1, 999), draw.happens(0.5)
    text = f"The {color} {noun} costs {price} and is {'sold' if sold else 'not sold'}."
    value = {"name": noun, "color": color, "price": price, "sold": sold}
    return text, _shuffled(draw, value)


def _visit(draw: Draw) -> tuple[str, dict[str, Any]]:
    day, city = draw.own(lambda: (draw.any(words.DAYS), draw.any(words.CITIES)))
    hour, guests = draw.number(1, 23), draw.some(words.NAMES, draw.number(1, 3))
    text = f"{', '.join(guests)} come to {city} on {day} at {hour}."
    return text, {"guests": guests, "place": {"city": city, "day": day, "hour": hour}}


def _numbers(draw: Draw) -> tuple[str, dict[str, Any]]:
    keys = draw.own(lambda: tuple(draw.some(words.NOUNS, draw.number(1, 4))))
    value = {key: draw.number(0, 999) for key in keys}
    return " ".join(f"{key} is {number}." for key, number in value.items()), value


def _shuffled(draw: Draw, value: dict[str, Any]) -> dict[str, Any]:
    """Some of its keys, in any order."""
    keys = draw.some(list(value), draw.number(2, len(value)))
    return {key: value[key] for key in keys}
