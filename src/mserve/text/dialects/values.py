"""One value whose wire form is bare text, made JSON as it arrives: the schema is asked first.

    schema says             text         becomes
    string first            3            "3"      character by character
    integer, then string    3 / 3 apples 3 / "3 apples"
    object or array         [1, 2        [1,2     token by token, repaired where it must be
    null allowed            null         null     else "null"
    nothing                 3 / x        3 / "x"  JSON if it is a number, true, false, null,
                                                  an object or a list; else a string

Knows schemas and JSON. Does not know where a value ends (the dialects do).
"""

from __future__ import annotations

import json
from typing import Any, Final

from mserve.text.dialects.json_text import JsonReader, JsonWriter, atom, begins_number, escape
from mserve.text.dialects.schema import Kind, SchemaView

_CONTAINERS: Final = frozenset({"object", "array"})
_UNTYPED: Final[tuple[Kind, ...]] = ("number", "boolean", "null", "object", "array", "string")


class Leaf:
    """Feed it the text of one value; JSON goes to ``writer``."""

    def __init__(self, view: SchemaView, writer: JsonWriter) -> None:
        self._view = view
        self._writer = writer
        self._kinds = view.kinds or _UNTYPED
        self._held: list[str] = []  # until its kind is known
        self._json: JsonReader | None = None
        self._probe: JsonReader | None = None  # reads along while the text is held
        self._is_string = self._kinds[0] == "string" and _all_strings(view.constants)
        self.rest = ""
        """After ``finish``: text that had no place in the value."""
        if self._is_string:
            writer.open_string()

    @property
    def is_string(self) -> bool:
        return self._is_string

    def push(self, text: str) -> None:
        if self._is_string:
            self._writer.characters(text)
        elif self._json is not None:
            self._writer.raw(self._json.push(text))
        else:
            self._held.append(text)
            self._decide(text)

    def finish(self) -> bool:
        """The value has ended. False if it is not what the schema asks for."""
        if self._is_string:
            self._writer.close_string()
            return True
        if self._json is not None:
            whole = self._json.done
            self._writer.raw(self._json.finish())
            self.rest = self._json.rest.strip()
            return whole and not self.rest
        value, fits = convert("".join(self._held), self._view)
        self._writer.raw(value)
        return fits

    def _decide(self, new: str) -> None:
        """Stop holding the text as soon as one kind is left."""
        if self._probe is not None:
            self._probe.push(new)
            if not self._probe.broken:
                return
        text = "".join(self._held)
        self._held = [text]
        if not text.strip():
            return
        if self._probe is None and text.lstrip()[0] in "{[":
            self._probe = JsonReader()
            begun = self._probe.push(text)
            if _CONTAINERS.issuperset(self._kinds):
                self._json = self._probe
                self._writer.raw(begun)
                return
        if "string" in self._kinds and not self._may_be_other_than_string(text):
            self._is_string = True
            self._writer.open_string()
            self._writer.characters(text)

    def _may_be_other_than_string(self, text: str) -> bool:
        if self._view.constants is not None:
            return any(_rendered(value).startswith(text) for value in self._view.constants)
        for kind in self._kinds[: self._kinds.index("string")]:
            match kind:
                case "integer" | "number":
                    begun = begins_number(text)
                case "boolean":
                    begun = "true".startswith(text) or "false".startswith(text)
                case "null":
                    begun = "null".startswith(text)
                case _:
                    begun = self._probe is not None and not self._probe.broken
            if begun:
                return True
        return False


def convert(text: str, view: SchemaView) -> tuple[str, bool]:
    """``text`` as JSON of the first kind that it fits, and whether it fits any.

    Where a string is possible the text must be written exactly as JSON is; elsewhere blanks
    around it and Python's spellings of the constants are tolerated. What fits nothing is a string.
    """
    exact = view.allows("string")
    bare = text if exact else text.strip()
    for constant in view.constants or ():
        if bare == _rendered(constant):
            return json.dumps(constant, ensure_ascii=False), True
    for kind in view.kinds or _UNTYPED:
        value = _as_kind(bare, kind, exact)
        if value is not None:
            return value, True
    return escape(text), False


def told(view: SchemaView, key: str, text: str) -> SchemaView:
    """The view of an object in which ``key`` turned out to be ``text``."""
    return view.given(key, json.loads(convert(text, view.member(key))[0]))


def _as_kind(text: str, kind: Kind, exact: bool) -> str | None:
    if kind == "string":
        return escape(text)
    if kind in _CONTAINERS:
        if not text.strip():
            return None if exact else ("{}" if kind == "object" else "[]")
        parsed = _parsed(text)
        return text.strip() if isinstance(parsed, dict if kind == "object" else list) else None
    value = atom(text)
    if value is None or (exact and value != text):
        return None
    if value in ("true", "false"):
        return value if kind == "boolean" else None
    if value == "null":
        return value if kind == "null" else None
    if kind == "number" or (kind == "integer" and _is_integer(value, exact)):
        return value
    return None


def _is_integer(number: str, exact: bool) -> bool:
    """Where a string is possible, 1.0 and 1e3 are not taken for integers."""
    if number.lstrip("-").isdigit():
        return True
    return not exact and float(number).is_integer()


def _parsed(text: str) -> Any:
    """The container that ``text`` is as strict JSON, or ``None``."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _all_strings(constants: tuple[Any, ...] | None) -> bool:
    return constants is None or all(isinstance(value, str) for value in constants)


def _rendered(constant: Any) -> str:
    """As chat templates write a value."""
    return constant if isinstance(constant, str) else json.dumps(constant, ensure_ascii=False)
