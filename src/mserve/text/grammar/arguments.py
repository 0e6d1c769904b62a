"""The arguments of one tool call as grammar, in the two wire forms.

    parameters (M2)   <parameter name="k">value</parameter>, nested values as JSON
    elements (M3)     NS<k>value NS</k>, nested values as elements, lists as NS<item>

Keys come in the order of the schema, optional ones may be left out. Keys beyond the declared ones
come only where the schema speaks of them and the form can close them. Knows schemas and tags.
Does not know blocks of calls (``calls``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from mserve.matcher import escaped, literal
from mserve.text.dialects import Kind, SchemaView
from mserve.text.grammar.bare import BareValues, Stop
from mserve.text.grammar.rules import Rules

MAX_NESTING: Final = 64
_SCALARS: Final[frozenset[Kind]] = frozenset(("integer", "number", "boolean", "null"))
_NOT_STRINGS: Final[frozenset[Kind]] = _SCALARS | {"object", "array"}
_OPEN, _OPEN_END, _CLOSE = '<parameter name="', '">', "</parameter>"
_ITEM: Final = "item"
_ANY_KEY: Final = "/[A-Za-z_][A-Za-z0-9_.-]{0,63}/"


class _Key(msgspec.Struct, frozen=True):
    """A key of an object, and its value's tag to tag."""

    body: str
    required: bool


class _Arguments(ABC):
    """What both forms share: which keys come, and when."""

    def __init__(self, rules: Rules, root: Mapping[str, Any], stop: Stop) -> None:
        self._rules = rules
        self._bare = BareValues(rules, root, stop)

    def _keys(self, one: SchemaView, parse: SchemaView, depth: int) -> list[_Key] | None:
        """``None``: a required key cannot be written, so neither can the object."""
        plain = one.plain
        required = set(plain.get("required", ()))
        declared = dict.fromkeys([*plain.get("properties", ()), *plain.get("required", ())])
        keys = []
        for key in declared:
            own = one.member(key)
            body = self._key(key, own, parse.member(key), depth)
            if body is not None:
                keys.append(_Key(body, key in required))
            elif key in required:
                return None
            if key in required and own.constants is not None and len(own.constants) == 1:
                parse = parse.given(key, own.constants[0])
        return keys

    @abstractmethod
    def _key(self, key: str, own: SchemaView, parse: SchemaView, depth: int) -> str | None:
        """A key and its value, tag to tag; ``None`` if this form cannot write it."""


class Parameters(_Arguments):
    """M2."""

    def __init__(self, rules: Rules, root: Mapping[str, Any]) -> None:
        super().__init__(rules, root, Stop(literal(_CLOSE), _CLOSE, is_text=True))

    def of(self, own: SchemaView, parse: SchemaView) -> str | None:
        """All parameters of a call; ``None`` if the schema allows none that can be written."""
        found = []
        for one in _objects(own):
            keys = self._keys(one, parse, 0)
            if keys is None:
                continue
            found.append(" ".join([_sequence(keys), *self._further(one, parse)]))
        return self._rules.choice(found) if found else None

    def _key(self, key: str, own: SchemaView, parse: SchemaView, depth: int) -> str | None:
        alternatives = self._bare.alternatives(own, parse, _NOT_STRINGS)
        if not alternatives or not key or '"' in key or "\n" in key:
            return None
        value = self._rules.choice(alternatives)
        return self._rules.rule(rf'{literal(_OPEN + key + _OPEN_END)} {value} "\n"')

    def _further(self, one: SchemaView, parse: SchemaView) -> Iterator[str]:
        """Parameters whose names the schema leaves open."""
        further = one.plain.get("additionalProperties", "properties" not in one.plain)
        if further is False:
            return
        others = [f"~/{escaped(key)}/" for key in one.declared_keys()]
        name = self._rules.terminal(" & ".join([_ANY_KEY, *others]))
        unnamed = "\0"  # no schema declares it, so a view of it is that of all further keys
        own, known = one.member(unnamed), parse.member(unnamed)
        alternatives = self._bare.alternatives(own, known, _NOT_STRINGS)
        if alternatives:
            value = self._rules.choice(alternatives)
            yield rf'({literal(_OPEN)} {name} {literal(_OPEN_END)} {value} "\n")*'


class Elements(_Arguments):
    """M3. ``mark`` is the namespace token, or its spelling where a vocabulary lacks it."""

    def __init__(self, rules: Rules, root: Mapping[str, Any], mark: Stop) -> None:
        super().__init__(rules, root, mark)
        self._mark = mark
        self._known: dict[bytes, str | None] = {}

    def of(self, own: SchemaView, parse: SchemaView) -> str | None:
        """All elements of a call; ``None`` if the schema allows none that can be written."""
        found = []
        for one in _objects(own):
            keys = self._keys(one, parse, 0)
            if keys is not None:
                found.append(_sequence(keys))
        return self._rules.choice(found) if found else None

    def _key(self, key: str, own: SchemaView, parse: SchemaView, depth: int) -> str | None:
        if not key or key[0] == "/" or len(key) > 512 or self._mark.spelled in key:
            return None
        return self._element(key, own, parse, depth + 1)

    def _element(self, tag: str, own: SchemaView, parse: SchemaView, depth: int) -> str | None:
        value = self._value(own, parse, depth)
        if value is None:
            return None
        opening, closing = literal(f"<{tag}>"), literal(f"</{tag}>")
        return self._rules.rule(f"{self._mark.written} {opening} {value} {closing}")

    def _value(self, own: SchemaView, parse: SchemaView, depth: int) -> str | None:
        """With the mark of the tag that closes it. Recursive schemas are written out, down to
        the bound."""
        if depth > MAX_NESTING:
            return None
        plains = [[one.plain for one in view.alternatives()] for view in (own, parse)]
        key = msgspec.json.encode([depth, plains])
        if key not in self._known:
            found = self._bare.alternatives(own, parse, _SCALARS)
            for one in own.alternatives():
                if one.constants is None:
                    found += self._containers(one, parse, depth)
            self._known[key] = self._rules.choice(found) if found else None
        return self._known[key]

    def _containers(self, one: SchemaView, parse: SchemaView, depth: int) -> Iterator[str]:
        claims_item = parse.declares(_ITEM) and parse.allows("object")
        both = parse.allows("object") and parse.allows("array")
        items = None
        if "array" in one.kinds and not (both and claims_item):
            items = self._items(one, parse, depth)
        if items is not None:
            yield f"{items} {self._mark.written}"
        if "object" not in one.kinds or (both and one.declares(_ITEM)):
            return
        if "properties" not in one.plain and one.plain.get("additionalProperties") is not False:
            # Keys that are not known cannot be closed by a grammar; the reader takes JSON too.
            if parse.kinds[:1] != ("string",):
                yield self._bare.json({**one.plain, "type": "object"})
            return
        keys = self._keys(one, parse, depth)
        if keys is None:
            return
        if _empty_is(parse) == "object" or any(key.required for key in keys):
            yield f"{_sequence(keys)} {self._mark.written}"
        else:
            yield from (f"{some} {self._mark.written}" for some in _not_empty(keys))

    def _items(self, one: SchemaView, parse: SchemaView, depth: int) -> str | None:
        plain = one.plain
        least, most = plain.get("minItems", 0), plain.get("maxItems")
        if least == 0 and _empty_is(parse) != "array":
            least = 1
        bodies: list[str] = []
        num_fixed = len(plain.get("prefixItems", ()))
        for number in range(num_fixed if most is None else min(num_fixed, most)):
            body = self._element(_ITEM, one.item(number), parse.item(number), depth + 1)
            if body is None:
                most = number
                break
            bodies.append(body)
        return self._repeated(one, parse, depth, bodies, least, most)

    def _repeated(
        self,
        one: SchemaView,
        parse: SchemaView,
        depth: int,
        fixed: list[str],
        least: int,
        most: int | None,
    ) -> str | None:
        """``fixed`` items, of which as many as ``least`` must come, then equal ones."""
        further = None
        if one.plain.get("items") is not False and (most is None or most > len(fixed)):
            number = len(fixed)
            further = self._element(_ITEM, one.item(number), parse.item(number), depth + 1)
        if further is None:
            most = len(fixed)
        if most is not None and least > most:
            return None
        rest = ""
        if further is not None:
            upper = "" if most is None else str(most - len(fixed))
            rest = f"({further}){{{max(0, least - len(fixed))},{upper}}}"
        for number, body in reversed(list(enumerate(fixed))):
            rest = f"{body} {rest}" if number < least else f"({body} {rest})?"
        return rest or '""'


def _objects(view: SchemaView) -> list[SchemaView]:
    return [one for one in view.alternatives() if not one.kinds or "object" in one.kinds]


def _sequence(keys: list[_Key]) -> str:
    return " ".join(key.body if key.required else f"({key.body})?" for key in keys) or '""'


def _not_empty(keys: list[_Key]) -> Iterator[str]:
    """Ways to write at least one of ``keys``, none of which is required."""
    for number, first in enumerate(keys):
        yield " ".join([first.body, *(f"({key.body})?" for key in keys[number + 1 :])])


def _empty_is(view: SchemaView) -> Kind | None:
    """What the reader takes an element without content for."""
    for kind in view.kinds:
        if kind in ("string", "array", "object"):
            return kind
    return None
