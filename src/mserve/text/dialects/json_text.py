"""JSON that is valid at every moment: written piece by piece, or repaired as it is read.

``JsonWriter`` writes one value; whatever happens, ``close`` makes what was written valid.
``JsonReader`` passes JSON text through as a model writes it, blanks between tokens left out and
strings let through as they come; what is no JSON ends it. Neither looks back, so each character
is handled once. Knows JSON only.
"""

from __future__ import annotations

import json.encoder
import math
import re
from typing import Final

escape: Final = json.encoder.encode_basestring
"""A JSON string with its quotes; non-ASCII characters stay as they are."""


class JsonWriter:
    """Writes objects, lists and values in order. ``take`` gives what is new."""

    def __init__(self) -> None:
        self._new: list[str] = []
        self._open: list[str] = []  # closers of what is open, outermost first
        self._first = True  # nothing yet in the innermost container

    def take(self) -> str:
        text = "".join(self._new)
        self._new.clear()
        return text

    def open_object(self) -> None:
        self._begin("{", "}")

    def open_array(self) -> None:
        self._begin("[", "]")

    def key(self, key: str) -> None:
        """In an object; the value comes next."""
        self._separate()
        self._new.append(escape(key) + ":")

    def element(self) -> None:
        """In a list; the value comes next."""
        self._separate()

    def raw(self, text: str) -> None:
        """JSON that the caller answers for: a whole value, or part of one it also ends."""
        if text:
            self._new.append(text)

    def open_string(self) -> None:
        self._new.append('"')

    def characters(self, text: str) -> None:
        """More of the open string."""
        self._new.append(escape(text)[1:-1])

    def close_string(self) -> None:
        self._new.append('"')

    def close(self) -> None:
        """End the innermost container."""
        self._new.append(self._open.pop())
        self._first = False

    def _begin(self, opener: str, closer: str) -> None:
        self._new.append(opener)
        self._open.append(closer)
        self._first = True

    def _separate(self) -> None:
        if not self._first:
            self._new.append(",")
        self._first = False


MAX_DEPTH: Final = 64
"""Containers within containers, as in grammars. What is nested deeper is not read as structure: it
could not come back, since a chat template that calls itself reaches its end at some 90 levels."""

_MAX_ATOM_CHARS: Final = 512
"""Longer numbers are none: readers of JSON refuse integers of thousands of digits."""

_BLANKS: Final = " \t\r\n"
_PLAIN_CHARS: Final = re.compile(r'[^"\\\x00-\x1f]+')
_ATOM_CHARS: Final = re.compile(r"[^\s,:\[\]{}\"]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NUMBER_BEGUN: Final = re.compile(r"-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d*)?)?")
_SPELLINGS: Final = {"True": "true", "False": "false", "None": "null"}
_SIMPLE_ESCAPES: Final = frozenset('"\\/bfnrt')
_HEX: Final = frozenset("0123456789abcdefABCDEF")


def atom(text: str) -> str | None:
    """A number, ``true``, ``false`` or ``null`` as JSON, or ``None``. Python's spellings of the
    last three are understood. A number beyond 64-bit floats is none: readers refuse it, or make
    it infinite."""
    text = _SPELLINGS.get(text, text)
    if text in ("true", "false", "null"):
        return text
    is_number = len(text) <= _MAX_ATOM_CHARS and _NUMBER.fullmatch(text) is not None
    return text if is_number and math.isfinite(float(text)) else None


def begins_number(text: str) -> bool:
    """Whether ``text`` is the beginning of one, or nothing yet."""
    return len(text) <= _MAX_ATOM_CHARS and _NUMBER_BEGUN.fullmatch(text) is not None


def begins_atom(text: str) -> bool:
    """The same of a number or a constant."""
    words = ("true", "false", "null", *_SPELLINGS)
    return begins_number(text) or any(word.startswith(text) for word in words)


class JsonReader:
    """Reads one JSON value. ``push`` returns what may be passed on, valid so far.

    A raw control character in a string is escaped, and so is a backslash that escapes nothing.
    ``done``: the value is whole. ``broken``: what came is no JSON; ``rest`` is the text from
    there on, or after the end of a whole value. A comma is passed on with what follows it, so
    that a container can be closed at any time.
    """

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self.rest = ""
        self._open: list[str] = []
        self._want = "value"  # value, first, key, first key, colon, comma
        self._comma = ""
        self._in_string = False
        self._is_key = False
        self._held = ""  # an unfinished escape or atom

    def push(self, text: str) -> str:
        if self.done or self.broken:
            self.rest += text
            return ""
        text, self._held = self._held + text, ""
        out: list[str] = []
        at = 0
        while at < len(text) and not (self.done or self.broken):
            at = self._string(text, at, out) if self._in_string else self._token(text, at, out)
        if self.done or self.broken:
            self.rest += text[at:]
        return "".join(out)

    def finish(self) -> str:
        """No more comes: what completes the value. Nothing if it is whole; ``null`` for one of
        which nothing has come."""
        out: list[str] = []
        held, self._held = self._held, ""
        if self._in_string:
            out.append('"')
            self._in_string = False
            self._want = "colon" if self._is_key else "comma"
        elif held and (value := atom(held)) is not None:
            out.append(self._comma + value)
            self._want = "comma"
        elif not begins_atom(held):
            self.rest = held + self.rest
        if self._want == "colon":
            out.append(":null")
        elif self._want == "value" and not self._comma and not self.done:
            out.append("null")  # after a colon, or of the whole value
        out.extend(reversed(self._open))
        self._open.clear()
        self.done = True
        return "".join(out)

    def _string(self, text: str, at: int, out: list[str]) -> int:
        plain = _PLAIN_CHARS.match(text, at)
        if plain is not None:
            out.append(plain.group())
            return plain.end()
        char = text[at]
        if char == '"':
            out.append('"')
            self._in_string = False
            self._after_value("colon" if self._is_key else "comma")
            return at + 1
        if char == "\\":
            return self._escape(text, at, out)
        out.append(escape(char)[1:-1])
        return at + 1

    def _escape(self, text: str, at: int, out: list[str]) -> int:
        following = text[at + 1 : at + 6]
        if following[:1] in _SIMPLE_ESCAPES and following:
            out.append(text[at : at + 2])
            return at + 2
        digits = following[1:]
        if following[:1] == "u" and len(digits) == 4 and _HEX.issuperset(digits):
            out.append(text[at : at + 6])
            return at + 6
        if not following or (following[0] == "u" and len(digits) < 4 and _HEX.issuperset(digits)):
            self._held = text[at:]
            return len(text)
        out.append("\\\\")  # a lone backslash: meant as itself
        return at + 1

    def _token(self, text: str, at: int, out: list[str]) -> int:
        char = text[at]
        if char in _BLANKS:
            return at + 1
        want = self._want
        if want in ("value", "first") and not (char == "]" and want == "first"):
            return self._value(text, at, out)
        if char == '"' and want in ("key", "first key"):
            out.append(self._comma + '"')
            self._comma = ""
            self._in_string = self._is_key = True
        elif char == ":" and want == "colon":
            out.append(":")
            self._want = "value"
        elif char == "," and want == "comma" and self._open:
            self._comma = ","
            self._want = "key" if self._open[-1] == "}" else "value"
        elif char in "]}" and self._open and char == self._open[-1] and want != "colon":
            self._comma = ""  # one before a closer is dropped
            out.append(self._open.pop())
            self._after_value("comma")
        else:
            self.broken = True
            return at
        return at + 1

    def _value(self, text: str, at: int, out: list[str]) -> int:
        char = text[at]
        if char == "]" and self._comma and self._open:  # [1, ]
            self._want = "comma"
            return at
        if char in "{[" and len(self._open) < MAX_DEPTH:
            out.append(self._comma + char)
            self._comma = ""
            self._open.append("}" if char == "{" else "]")
            self._want = "first key" if char == "{" else "first"
            return at + 1
        if char == '"':
            out.append(self._comma + char)
            self._comma = ""
            self._in_string, self._is_key = True, False
            return at + 1
        end = _ATOM_CHARS.match(text, at).end()  # type: ignore[union-attr]
        if end == len(text) and end - at <= _MAX_ATOM_CHARS:
            self._held = text[at:]
            return end
        value = atom(text[at:end])
        if value is None:
            self.broken = True
            return at
        out.append(self._comma + value)
        self._comma = ""
        self._after_value("comma")
        return end

    def _after_value(self, want: str) -> None:
        self._want = want
        if want == "comma" and not self._open:
            self.done = True
