"""Tools that the model is taught to fill: their JSON, ways to ask for them, and arguments.

Two kinds. Known ones, asked for in plain language, whose cities, names and numbers vary. Free
ones, made up of random words and asked for word by word, so that names never seen work as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo.data import words
from demo.data.draw import Draw

Arguments = dict[str, Any]

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}


@dataclass(frozen=True)
class Use:
    """A tool in the form that requests carry, a way to ask for it, and what it is called with."""

    tool: dict[str, Any]
    request: str
    arguments: Arguments

    @property
    def name(self) -> str:
        return str(self.tool["function"]["name"])


@dataclass(frozen=True)
class Shape:
    """``names`` for one tool; ``asks`` are formatted with what ``fill`` drew (the last is held
    out) and ``fill`` also tells the arguments."""

    names: tuple[str, ...]
    description: str
    properties: dict[str, Any]
    required: tuple[str, ...]
    asks: tuple[str, ...]
    fill: Callable[[Draw], tuple[dict[str, Any], Arguments]]

    def use(self, draw: Draw) -> Use:
        values, arguments = self.fill(draw)
        tool = function(draw.any(self.names), self.description, self.properties, self.required)
        return Use(tool, draw.phrase(self.asks).format(**values), arguments)


def function(
    name: str, description: str, properties: dict[str, Any], required: tuple[str, ...]
) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    described = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": described}


def _flat(**pools: Callable[[Draw], Any]) -> Callable[[Draw], tuple[dict[str, Any], Arguments]]:
    """Every argument is said as it is."""

    def fill(draw: Draw) -> tuple[dict[str, Any], Arguments]:
        values = {name: pool(draw) for name, pool in pools.items()}
        return values, values

    return fill


def _city(draw: Draw) -> str:
    return draw.one(words.CITIES)


def _name(draw: Draw) -> str:
    return draw.one(words.NAMES)


def _title(draw: Draw) -> str:
    return " ".join(draw.own(lambda: (draw.any(words.ADJECTIVES), draw.any(words.NOUNS))))


def _day(draw: Draw) -> str:
    return draw.any(words.DAYS)


def _up_to(largest: int) -> Callable[[Draw], int]:
    return lambda draw: draw.number(1, largest)


def _alarm(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    hour, minute = draw.number(0, 23), draw.number(10, 59)
    return {"hour": hour, "minute": minute}, {"hour": hour, "minute": minute}


def _light(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    room, on = draw.any(("kitchen", "garden", "bedroom", "office", "hall")), draw.happens(0.5)
    return {"room": room, "state": "on" if on else "off"}, {"room": room, "on": on}


def _event(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    title, day, hour = _title(draw), _day(draw), draw.number(8, 20)
    guests = draw.some(words.NAMES, draw.number(1, 3))
    values = {"title": title, "day": day, "hour": hour, "guests": _listed(guests)}
    return values, {"title": title, "time": {"day": day, "hour": hour}, "guests": guests}


def _order(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    items = [
        {"name": food, "count": draw.number(2, 9)}
        for food in draw.some(words.FOODS, draw.number(1, 3))
    ]
    city, street = _city(draw), draw.any(words.NOUNS)
    said = _listed([f"{item['count']} {item['name']}" for item in items])
    values = {"items": said, "city": city, "street": street}
    return values, {"items": items, "address": {"city": city, "street": street}}


def _contact(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    name, city, phone = _name(draw), _city(draw), str(draw.number(1000, 99999))
    values = {"name": name, "city": city, "phone": phone}
    return values, {"name": name, "details": {"city": city, "phone": phone}}


def _note(draw: Draw) -> tuple[dict[str, Any], Arguments]:
    title, tags = _title(draw), draw.some(words.NOUNS, draw.number(1, 3))
    return {"title": title, "tags": _listed(tags)}, {"title": title, "tags": tags}


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


FLAT = (
    Shape(
        ("get_time", "get_current_time", "local_time"),
        "Get the time in a city",
        {"city": _TEXT},
        ("city",),
        (
            "What time is it in {city}?",
            "Tell me the time in {city}.",
            "What time is it now in {city}?",
            "Please tell me the time in {city}.",
            "The time in {city}, please.",
            "What is the time in {city}?",
        ),
        _flat(city=_city),
    ),
    Shape(
        ("send_message", "send_text", "message_person"),
        "Send a message to a person",
        {"recipient": _TEXT, "text": _TEXT},
        ("recipient", "text"),
        (
            'Send "{text}" to {recipient}.',
            'Send {recipient} the message "{text}".',
            'Tell {recipient}: "{text}".',
            'Please send "{text}" to {recipient}.',
            'Message to {recipient}: "{text}".',
            'Write to {recipient}: "{text}".',
            'Write {recipient} "{text}".',
            'Give "{text}" to {recipient}.',
            'Say "{text}" to {recipient}.',
            'Write "{text}" to {recipient}.',
        ),
        _flat(recipient=_name, text=_title),
    ),
    Shape(
        ("set_alarm", "create_alarm", "wake_me"),
        "Set an alarm",
        {"hour": _WHOLE, "minute": _WHOLE},
        ("hour", "minute"),
        (
            "Set an alarm for {hour}:{minute}.",
            "Wake me at {hour}:{minute}.",
            "Alarm at {hour}:{minute}.",
            "Please wake me at {hour}:{minute}.",
            "I need an alarm for {hour}:{minute}.",
            "Please set an alarm for {hour}:{minute}.",
        ),
        _alarm,
    ),
    Shape(
        ("search_flights", "find_flights", "flight_search"),
        "Find flights between two cities",
        {"origin": _TEXT, "destination": _TEXT, "day": _TEXT},
        ("origin", "destination"),
        (
            "Find flights from {origin} to {destination} on {day}.",
            "I want to fly from {origin} to {destination} on {day}.",
            "Flights from {origin} to {destination} on {day}, please.",
            "On {day} I want to fly from {origin} to {destination}.",
            "Please search flights from {origin} to {destination} on {day}.",
            "Please find flights from {origin} to {destination} on {day}.",
        ),
        _flat(origin=_city, destination=_city, day=_day),
    ),
    Shape(
        ("book_table", "reserve_table", "book_restaurant"),
        "Book a table in a restaurant",
        {"city": _TEXT, "people": _WHOLE, "day": _TEXT},
        ("city", "people"),
        (
            "Book a table for {people} in {city} on {day}.",
            "Reserve a table for {people} people in {city} on {day}.",
            "I need a table for {people} in {city} on {day}.",
            "On {day} I need a table for {people} in {city}.",
            "Please reserve a table for {people} in {city} on {day}.",
            "Please book a table for {people} in {city} on {day}.",
        ),
        _flat(city=_city, people=_up_to(12), day=_day),
    ),
    Shape(
        ("translate", "translate_text", "translate_word"),
        "Translate a text",
        {"text": _TEXT, "language": {"type": "string", "enum": list(words.LANGUAGES)}},
        ("text", "language"),
        (
            'Translate "{text}" into {language}.',
            'Translate "{text}" to {language}.',
            'Please translate "{text}" into {language}.',
            'How do I say "{text}" in {language}?',
            'Tell me "{text}" in {language}.',
            'Say "{text}" in {language}.',
            'I need "{text}" in {language}.',
            '"{text}" in {language}, please.',
            'What does "{text}" mean in {language}?',
            'What is "{text}" in {language}?',
        ),
        _flat(text=_title, language=lambda draw: draw.any(words.LANGUAGES)),
    ),
    Shape(
        ("set_light", "switch_light", "control_light"),
        "Switch a light on or off",
        {"room": _TEXT, "on": {"type": "boolean"}},
        ("room", "on"),
        (
            "Turn {state} the light in the {room}.",
            "Switch the {room} light {state}.",
            "Turn the {room} light {state}.",
            "Please turn {state} the light in the {room}.",
            "The light in the {room}: {state}.",
            "Switch the light in the {room} {state}.",
            "Switch {state} the light in the {room}.",
        ),
        _light,
    ),
    Shape(
        ("get_distance", "measure_distance", "city_distance"),
        "Get the distance between two cities",
        {"start": _TEXT, "end": _TEXT},
        ("start", "end"),
        (
            "How far is it from {start} to {end}?",
            "What is the distance from {start} to {end}?",
            "What is the distance between {start} and {end}?",
            "How far is {end} from {start}?",
            "Please tell me how far it is from {start} to {end}.",
            "The distance from {start} to {end}, please.",
            "Tell me the distance from {start} to {end}.",
        ),
        _flat(start=_city, end=_city),
    ),
    Shape(
        ("search_web", "web_search", "find_pages"),
        "Search the web",
        {"query": _TEXT, "limit": _WHOLE},
        ("query",),
        (
            'Search the web for "{query}" and show {limit} results.',
            'Find {limit} pages about "{query}".',
            'Search for "{query}" and show {limit} pages.',
            'Please find {limit} results for "{query}".',
            'Look for "{query}" and show {limit} results.',
            'Look for "{query}", {limit} pages.',
            'Find "{query}", {limit} results.',
            'Search for "{query}", {limit} results.',
        ),
        _flat(query=_title, limit=_up_to(20)),
    ),
)

NESTED = (
    Shape(
        ("create_event", "add_event", "plan_event"),
        "Create an event",
        {
            "title": _TEXT,
            "time": {"type": "object", "properties": {"day": _TEXT, "hour": _WHOLE}},
            "guests": {"type": "array", "items": _TEXT},
        },
        ("title", "time"),
        (
            'Create the event "{title}" on {day} at {hour} with {guests}.',
            'Plan "{title}" on {day} at {hour} with {guests}.',
            'Please plan "{title}" with {guests} on {day} at {hour}.',
            'On {day} at {hour} I have "{title}" with {guests}.',
            'New event "{title}" on {day} at {hour}, guests {guests}.',
            'Please create "{title}" on {day} at {hour} with {guests}.',
            'Add the event "{title}" on {day} at {hour} with {guests}.',
        ),
        _event,
    ),
    Shape(
        ("order_food", "place_order", "food_order"),
        "Order food",
        {
            "items": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": _TEXT, "count": _WHOLE}},
            },
            "address": {"type": "object", "properties": {"city": _TEXT, "street": _TEXT}},
        },
        ("items", "address"),
        (
            "Order {items} to {street} street in {city}.",
            "Bring {items} to {street} street in {city}.",
            "Please order {items} to {street} street in {city}.",
            "In {city}, bring {items} to {street} street.",
            "I want to order {items} to {street} street in {city}.",
            "Please bring {items} to {street} street, {city}.",
            "Order {items}, please. I am at {street} street in {city}.",
            "I want {items} in {city} at {street} street.",
            "I want {items} at {street} street in {city}.",
        ),
        _order,
    ),
    Shape(
        ("add_contact", "save_contact", "new_contact"),
        "Save a contact",
        {
            "name": _TEXT,
            "details": {"type": "object", "properties": {"city": _TEXT, "phone": _TEXT}},
        },
        ("name",),
        (
            "Save the contact {name} in {city} with phone {phone}.",
            "Add the contact {name}, {city}, phone {phone}.",
            "Please save {name} in {city} with phone {phone}.",
            "Contact: {name}, {city}, phone {phone}.",
            "Save {name}, phone {phone}, {city}.",
            "New contact {name} with phone {phone} in {city}.",
            "New contact: {name}, {city}, phone {phone}.",
            "New contact: {name}, phone {phone}, in {city}.",
            "Contact: {name} in {city}, phone {phone}.",
            "New contact: {name} in {city}, phone {phone}.",
        ),
        _contact,
    ),
    Shape(
        ("create_note", "save_note", "write_note"),
        "Save a note with tags",
        {"title": _TEXT, "tags": {"type": "array", "items": _TEXT}},
        ("title",),
        (
            'Save the note "{title}" with the tags {tags}.',
            'Write a note "{title}" tagged {tags}.',
            'Note "{title}", tags {tags}.',
            'New note "{title}" with the tags {tags}.',
            'Please write a note "{title}" tagged {tags}.',
            'Please save the note "{title}" with the tags {tags}.',
        ),
        _note,
    ),
)

_VERBS = (
    *("find", "open", "close", "move", "paint", "count", "check", "start", "stop", "update"),
    *("fetch", "build", "clean", "load", "store", "print", "share", "sort", "watch", "mark"),
)
_FREE_ASKS = (
    "Call {name} with {said}.",
    "Use {name} with {said}.",
    "Run {name} with {said}.",
    "Please call {name} with {said}.",
    "Use {name}, please, with {said}.",
    "Call {name}, please, with {said}.",
)


def free_use(draw: Draw) -> Use:
    """A made-up tool of one to three parameters."""
    verb, noun = draw.own(lambda: (draw.any(_VERBS), draw.any(words.NOUNS)))
    properties: dict[str, Any] = {}
    arguments: Arguments = {}
    for parameter in draw.some(words.NOUNS, draw.number(1, 3)):
        if draw.happens(0.5):
            properties[parameter], arguments[parameter] = _WHOLE, draw.number(0, 999)
        else:
            properties[parameter], arguments[parameter] = _TEXT, draw.any(words.ADJECTIVES)
    tool = function(
        f"{verb}_{noun}", f"{verb.capitalize()} the {noun}", properties, tuple(properties)
    )
    said = _listed([f"{parameter} {value}" for parameter, value in arguments.items()])
    return Use(tool, draw.phrase(_FREE_ASKS).format(name=f"{verb}_{noun}", said=said), arguments)
