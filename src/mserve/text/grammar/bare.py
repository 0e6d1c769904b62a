"""Values as bare text: strings raw, everything else JSON, so that the dialect reads back the same.

A wire form carries no types: the parser asks the tool's schema which kind a text is. A grammar
must therefore not only keep to the schema but also write nothing that would be read as another
kind: where a string comes first, all text is a string; where a number may come before it, no
string looks like one. What cannot be written so is left out, which narrows the choice and never
widens it.

``own`` is the alternative being written, ``parse`` all that the parser knows at this place. Knows
values. Does not know tags (``arguments``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from mserve.matcher import escaped, inline_schema, literal, regex_body
from mserve.text.dialects import Kind, SchemaView
from mserve.text.grammar.rules import Rules

JSON_STYLE: Final = {
    # Bounded, so that a model which likes blanks cannot write them for ever.
    "whitespace_pattern": r"[ \t]{0,4}|\r?\n[ \t]{0,128}",
    "coerce_one_of": True,
}
COMPACT_STYLE: Final = {"whitespace_flexible": False, "coerce_one_of": True}
_CONTAINERS: Final = frozenset(("object", "array"))
_NUMBERS: Final[dict[Kind, str]] = {
    "integer": r"/-?(0|[1-9][0-9]{0,99})/",
    "number": r"/-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][+-]?[0-9]{1,2})?/",
}
"""As JSON, within what 64-bit floats hold: the reader takes no other for a number. A model that
repeats itself cannot write digits for ever either."""
_BOUNDS: Final = frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
)
_UNLIKE_JSON: Final = (
    r"/[^\s\-0-9\[{](?s:.*)/",
    r"~/(true|false|null|True|False|None)/",
    r"~/(?s:.*)\s/",
)
_LOOKS_LIKE_JSON: Final = re.compile(r"(?s)|[\s\-0-9\[{].*|true|false|null|True|False|None|.*\s")


class Stop(msgspec.Struct, frozen=True):
    """What ends a value. ``written``: in the grammar; ``spelled``: text that no value may hold.
    ``is_text``: it is made of characters, so the end of a raw string is found only with it."""

    written: str
    spelled: str
    is_text: bool


class BareValues:
    """Writes values of one tool's arguments, each with its stop."""

    def __init__(self, rules: Rules, root: Mapping[str, Any], stop: Stop) -> None:
        self._rules = rules
        self._root = root
        self._stop = stop

    def alternatives(
        self, own: SchemaView, parse: SchemaView, json_kinds: frozenset[Kind]
    ) -> list[str]:
        """Bodies that ``own`` allows; of the kinds other than strings, those in ``json_kinds``."""
        is_string = parse.kinds[:1] == ("string",) and _all_strings(parse.constants)
        found: list[str] = []
        for one in own.alternatives():
            if one.constants is not None:
                found += self._constants(one, parse, is_string)
            elif not one.kinds:
                found.append(self._string({}, read_as_string=True))
            else:
                if "string" in one.kinds:
                    found.append(self._string(one.plain, read_as_string=is_string))
                others = [kind for kind in one.kinds if kind in json_kinds and kind != "string"]
                if not is_string:
                    found += self._not_strings(one.plain, others)
        return found

    def json(self, schema: Mapping[str, Any], style: Mapping[str, Any] = JSON_STYLE) -> str:
        """JSON text of any kind that ``schema`` allows."""
        if "$ref" in json.dumps(schema):
            schema = {**_moved(schema), "x-root": _moved(self._root)}
        return f"{inline_schema({'x-guidance': style, **schema})} {self._stop.written}"

    def _not_strings(self, plain: Mapping[str, Any], kinds: Sequence[Kind]) -> Iterator[str]:
        """Blanks only within lists and objects: beside a scalar they could make it a string."""
        if _BOUNDS.isdisjoint(plain):
            for kind, form in _NUMBERS.items():
                if kind in kinds:
                    yield f"{self._rules.terminal(form)} {self._stop.written}"
            kinds = [kind for kind in kinds if kind not in _NUMBERS]
        for is_container, style in ((False, COMPACT_STYLE), (True, JSON_STYLE)):
            some = [kind for kind in kinds if (kind in _CONTAINERS) is is_container]
            if some:
                yield self.json({**plain, "type": some}, style)

    def _constants(self, one: SchemaView, parse: SchemaView, is_string: bool) -> list[str]:
        found = []
        for constant in one.constants or ():
            if one.kinds and not _is_any_of(constant, one.kinds):
                continue
            if isinstance(constant, str):
                text = constant
                told_apart = is_string or parse.constants is not None
                if not told_apart and _LOOKS_LIKE_JSON.fullmatch(text):
                    continue
                if not text.strip() and not _CONTAINERS.isdisjoint(parse.kinds):
                    continue
            elif is_string:
                continue
            else:
                text = json.dumps(constant, ensure_ascii=False)
            if self._stop.spelled not in text:
                found.append(
                    f"{literal(text)} {self._stop.written}" if text else self._stop.written
                )
        return found

    def _string(self, plain: Mapping[str, Any], *, read_as_string: bool) -> str:
        parts = [f"/(?s:.{_count(plain)})/", f"~/(?s:.*){escaped(self._stop.spelled)}(?s:.*)/"]
        if "pattern" in plain:
            parts.append(f"/{_found_anywhere(plain['pattern'])}/")
        if not read_as_string:
            parts += _UNLIKE_JSON
        text = self._rules.terminal(" & ".join(parts))
        if self._stop.is_text:
            return self._rules.terminal(f"{text} {self._stop.written}")
        return f"{text} {self._stop.written}"


def _count(plain: Mapping[str, Any]) -> str:
    least, most = plain.get("minLength"), plain.get("maxLength")
    return (
        "*"
        if least is None and most is None
        else f"{{{least or 0},{'' if most is None else most}}}"
    )


def _found_anywhere(pattern: str) -> str:
    """A pattern of a schema, which may match anywhere, as one for the whole text. One that names
    begin or end in only some of its branches is held to them in all: narrower, never wider."""
    begins = pattern.startswith("^")
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    core = regex_body(pattern[begins : len(pattern) - ends])
    before, after = "" if begins else "(?s:.*)", "" if ends else "(?s:.*)"
    return f"{before}(?:{core}){after}"


def _all_strings(constants: tuple[Any, ...] | None) -> bool:
    return constants is None or all(isinstance(value, str) for value in constants)


def _is_any_of(value: Any, kinds: tuple[Kind, ...]) -> bool:
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case str():
            return "string" in kinds
        case int():
            return "integer" in kinds or "number" in kinds
        case float():
            return "number" in kinds
        case list():
            return "array" in kinds
        case _:
            return "object" in kinds


def _moved(schema: Any) -> Any:
    """``schema`` with its references led to where the root stands within another schema."""
    if isinstance(schema, dict):
        return {
            name: "#/x-root" + part[1:]
            if name == "$ref" and isinstance(part, str)
            else _moved(part)
            for name, part in schema.items()
        }
    return [_moved(part) for part in schema] if isinstance(schema, list) else schema
