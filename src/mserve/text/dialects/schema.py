"""What a tool's JSON Schema says about a value whose wire form carries no types.

A ``SchemaView`` is one place in a schema with references, unions and ``allOf`` already opened: a
list of plain alternatives in declared order. Keywords that do not tell types apart are passed
over; a schema is never refused. Knows JSON Schema. Does not know any wire form (``values``).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

Kind: TypeAlias = Literal["string", "integer", "number", "boolean", "null", "object", "array"]

_KINDS: Final = ("string", "integer", "number", "boolean", "null", "object", "array")
_MAX_ALTERNATIVES = 64
_COMBINERS: Final = frozenset({"anyOf", "oneOf", "allOf"})
_CONSTANT_KEYWORDS: Final = frozenset({"const", "enum"})
_IMPLIED_BY: Final[dict[str, Kind]] = {
    "properties": "object",
    "additionalProperties": "object",
    "patternProperties": "object",
    "required": "object",
    "items": "array",
    "prefixItems": "array",
    "minLength": "string",
    "maxLength": "string",
    "pattern": "string",
    "format": "string",
    "minimum": "number",
    "maximum": "number",
}

Plain: TypeAlias = Mapping[str, Any]


class SchemaView:
    """One value's schema. Views are immutable and make their children once."""

    def __init__(self, root: object, alternatives: Sequence[Plain]) -> None:
        self._root = root
        self._alternatives = tuple(alternatives)
        kinds = [kind for plain in alternatives for kind in _kinds_of(plain)]
        self.kinds: tuple[Kind, ...] = tuple(dict.fromkeys(kinds))
        """Types that the value may have, in declared order; empty: any."""
        if not all(_kinds_of(plain) for plain in alternatives):
            self.kinds = ()
        self.constants = self._constants()
        """Values of ``enum`` and ``const``, in declared order; ``None``: not restricted so."""
        self._properties: dict[str, SchemaView] = {}

    @property
    def plain(self) -> Plain:
        """What a view of one alternative says, references and unions opened at its top."""
        (plain,) = self._alternatives
        return plain

    def alternatives(self) -> list[SchemaView]:
        """A view of each alternative, in declared order."""
        return [SchemaView(self._root, [plain]) for plain in self._alternatives]

    def allows(self, kind: Kind) -> bool:
        return not self.kinds or kind in self.kinds

    def declares(self, key: str) -> bool:
        """Whether an object here names ``key`` among its properties."""
        return any(key in _mapping(plain, "properties") for plain in self._alternatives)

    def declared_keys(self) -> Iterator[str]:
        for plain in self._alternatives:
            yield from _mapping(plain, "properties")

    def admits(self, key: str) -> bool:
        """Whether an object here may have ``key``, declared or not."""
        objects = [plain for plain in self._alternatives if _may_be(plain, "object")]
        return not objects or any(
            key in _mapping(plain, "properties") or plain.get("additionalProperties") is not False
            for plain in objects
        )

    def member(self, key: str) -> SchemaView:
        """The view of the value of ``key``: all that any alternative says about it."""
        view = self._properties.get(key)
        if view is None:
            said = []
            for plain in self._alternatives:
                if key in (properties := _mapping(plain, "properties")):
                    said.append(properties[key])
                elif isinstance(plain.get("additionalProperties"), dict):
                    said.append(plain["additionalProperties"])
            view = _view(self._root, said)
            # Keys that a model invents must not fill memory: tools outlive requests.
            if len(self._properties) < 256:
                self._properties[key] = view
        return view

    def item(self, number: int) -> SchemaView:
        """The view of element ``number`` of an array."""
        said = []
        for plain in self._alternatives:
            prefix = plain.get("prefixItems")
            if isinstance(prefix, list) and number < len(prefix):
                said.append(prefix[number])
            elif "items" in plain:
                said.append(plain["items"])
        return _view(self._root, said) if len(said) != 1 else self._only_item(said[0])

    def tells_apart(self, key: str) -> bool:
        """Whether the value of ``key`` may rule alternatives out: the tag of a tagged union."""
        return len(self._alternatives) > 1 and any(
            not _CONSTANT_KEYWORDS.isdisjoint(_mapping(_mapping(plain, "properties"), key))
            for plain in self._alternatives
        )

    def given(self, key: str, value: Any) -> SchemaView:
        """The view once ``key`` is known: without alternatives that ask for another constant."""
        kept = [plain for plain in self._alternatives if self._agrees(plain, key, value)]
        return SchemaView(self._root, kept) if kept else self

    def _agrees(self, plain: Plain, key: str, value: Any) -> bool:
        constants = _view(self._root, [_mapping(plain, "properties").get(key)]).constants
        return constants is None or any(_same(constant, value) for constant in constants)

    def _only_item(self, schema: Any) -> SchemaView:
        if self._item is None or self._item[0] is not schema:
            self._item = (schema, _view(self._root, [schema]))
        return self._item[1]

    _item: tuple[Any, SchemaView] | None = None

    def _constants(self) -> tuple[Any, ...] | None:
        values: list[Any] = []
        for plain in self._alternatives:
            if "const" in plain:
                values.append(plain["const"])
            elif isinstance(plain.get("enum"), list):
                values += plain["enum"]
            else:
                return None
        return tuple(values) if self._alternatives else None


class Tools:
    """The tools of a request, by name. Make it once per request, or keep it for equal tools."""

    def __init__(self, schemas: Mapping[str, object]) -> None:
        """``schemas``: for each tool the JSON Schema of its arguments; anything that is not an
        object counts as no schema."""
        self._views = {
            name: view_of(schema) if isinstance(schema, dict) else ANY
            for name, schema in schemas.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._views

    def __len__(self) -> int:
        return len(self._views)

    def arguments_of(self, name: str) -> SchemaView:
        """``ANY`` for an unknown tool."""
        return self._views.get(name, ANY)


def view_of(schema: object) -> SchemaView:
    """The view of a whole schema; local references are looked up in it."""
    return _view(schema, [schema])


def _view(root: object, schemas: Sequence[object]) -> SchemaView:
    alternatives: list[Plain] = []
    opening = _Opening(root)
    for schema in schemas:
        alternatives += opening.alternatives(schema, depth=0)
    if not alternatives:
        return ANY
    return SchemaView(root, alternatives[:_MAX_ALTERNATIVES])


class _Opening:
    """Takes ``$ref``, ``anyOf``, ``oneOf`` and ``allOf`` apart. Schemas come from requests: one
    that refers in circles, or unfolds without end, says nothing where the bounds are reached."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._steps_left = 512

    def alternatives(self, schema: object, depth: int) -> list[Plain]:
        self._steps_left -= 1
        if not isinstance(schema, dict) or depth > 32 or self._steps_left < 0:
            return [{}]
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = self.alternatives(_resolve(self._root, reference), depth + 1)
            rest = {name: value for name, value in schema.items() if name != "$ref"}
            return [{**plain, **rest} for plain in target] if rest else target
        opened: list[Plain] = [
            {name: value for name, value in schema.items() if name not in _COMBINERS}
        ]
        parts, union = schema.get("allOf"), schema.get("anyOf") or schema.get("oneOf")
        for part in parts if isinstance(parts, list) else []:
            opened = _both(opened, self.alternatives(part, depth + 1))
        if isinstance(union, list):
            branches = [self.alternatives(branch, depth + 1) for branch in union]
            opened = _both(opened, [plain for branch in branches for plain in branch])
        if schema.get("nullable") is True:
            opened = [*opened, {"type": "null"}]
        return opened[:_MAX_ALTERNATIVES]


def _both(these: Sequence[Plain], those: Sequence[Plain]) -> list[Plain]:
    """Every pair that can hold together; what both say about properties is put together."""
    pairs = ((one, other) for other in those for one in these)
    return [_joined(one, other) for one, other in itertools.islice(pairs, _MAX_ALTERNATIVES)]


def _joined(one: Plain, other: Plain) -> Plain:
    joined = {**one, **other}
    properties = {**_mapping(one, "properties"), **_mapping(other, "properties")}
    if properties:
        joined["properties"] = properties
    if "type" in one and "type" in other:
        kinds = [kind for kind in _kinds_of(one) if kind in _kinds_of(other)]
        if kinds:
            joined["type"] = kinds
    return joined


def _resolve(root: object, reference: str) -> object:
    """A JSON pointer within ``root``; what points elsewhere says nothing."""
    if not reference.startswith("#"):
        return {}
    place = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(key, {})
        elif isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        else:
            return {}
    return place


def _kinds_of(plain: Plain) -> tuple[Kind, ...]:
    named = plain.get("type")
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list):
        return tuple(cast(Kind, kind) for kind in named if kind in _KINDS)
    if "const" in plain:
        return (_kind_of_value(plain["const"]),)
    if isinstance(plain.get("enum"), list):
        return tuple(dict.fromkeys(map(_kind_of_value, plain["enum"])))
    implied = (kind for keyword, kind in _IMPLIED_BY.items() if keyword in plain)
    return tuple(dict.fromkeys(implied))


def _kind_of_value(value: Any) -> Kind:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


def _may_be(plain: Plain, kind: Kind) -> bool:
    kinds = _kinds_of(plain)
    return not kinds or kind in kinds


def _mapping(plain: Plain, keyword: str) -> Mapping[str, Any]:
    value = plain.get(keyword)
    return value if isinstance(value, dict) else {}


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: ``true`` is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


ANY: Final = SchemaView(None, ({},))
"""No schema: any value."""
