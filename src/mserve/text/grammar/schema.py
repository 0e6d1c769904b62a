"""A caller's JSON Schema, made fit for grammars: bounded, checked, unknown keywords taken out.

What a grammar cannot express is passed over rather than refused, since schemas come from many
tools and most of their keywords describe; the caller hears which ones. What is malformed, loops
or is too large is refused. Knows JSON Schema. Does not know what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from mserve.core import RequestError

MAX_SCHEMA_BYTES: Final = 256 << 10
MAX_NESTING: Final = 64

_KINDS: Final = frozenset(("string", "integer", "number", "boolean", "null", "object", "array"))
_FORMATS: Final = frozenset(
    ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
_ONE: Final = ("additionalProperties", "items")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_STRUCTURE: Final = frozenset((*_ONE, *_LISTS, *_MAPS, "$ref"))
_DESCRIBING: Final = frozenset(
    (
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "id", "$comment", "contentMediaType", "contentEncoding"),
    )
)


class CleanSchema(msgspec.Struct, frozen=True):
    """``schema`` holds only keywords that a grammar can follow, ``passed_over`` the names of the
    others that would have restricted the answer."""

    schema: dict[str, Any]
    passed_over: tuple[str, ...]


def clean(schema: object, param: str) -> CleanSchema:
    """Raises ``RequestError`` ``invalid_schema`` that names ``param``."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise refused("a schema must be a JSON object", param)
    if len(_encoded(schema, param)) > MAX_SCHEMA_BYTES:
        raise refused(f"the schema is larger than {MAX_SCHEMA_BYTES >> 10} KiB", param)
    cleaner = _Cleaner(schema, param)
    cleaned = cleaner.schema(schema, 0)
    assert isinstance(cleaned, dict)
    return CleanSchema(cleaned, tuple(sorted(cleaner.passed_over)))


def refused(message: str, param: str) -> RequestError:
    return RequestError(message, param=param, code="invalid_schema")


class _Cleaner:
    def __init__(self, root: dict[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self.passed_over: set[str] = set()

    def schema(self, schema: object, depth: int) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._refused("a schema within it is neither an object nor true or false")
        if depth > MAX_NESTING:
            raise self._refused(f"the schema is nested deeper than {MAX_NESTING} levels")
        kept: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _DESCRIBING or keyword == "nullable":
                continue
            if _applies(keyword, value):
                kept[keyword] = self._part(keyword, value, depth + 1)
            else:
                self.passed_over.add(keyword)
        if kept.get("properties"):  # the library counts properties only where none is named
            for keyword in ("minProperties", "maxProperties"):
                if kept.pop(keyword, None) is not None:
                    self.passed_over.add(keyword)
        if isinstance(kept.get("items"), list):  # the older spelling of tuples
            kept["prefixItems"] = kept.pop("items")
        return {"anyOf": [kept, {"type": "null"}]} if schema.get("nullable") is True else kept

    def _part(self, keyword: str, value: Any, depth: int) -> Any:
        if keyword in _ONE and not isinstance(value, list):
            return self.schema(value, depth)
        if keyword in _LISTS or keyword == "items":
            if not isinstance(value, list) or not value:
                raise self._refused(f"{keyword} must be a list of schemas, and not empty")
            return [self.schema(part, depth) for part in value]
        if keyword in _MAPS:
            if not isinstance(value, dict):
                raise self._refused(f"{keyword} must be an object of schemas")
            return {name: self.schema(part, depth) for name, part in value.items()}
        if keyword == "$ref":
            return self._reference(value)
        if not _CHECKS[keyword](value):
            raise self._refused(f"the value of {keyword} is not what JSON Schema asks for")
        return value

    def _reference(self, value: Any) -> str:
        """``value`` if it leads to a schema within this one."""
        if not isinstance(value, str):
            raise self._refused("$ref must be a string")
        seen = set()
        reference: object = value
        while isinstance(reference, str):
            if reference in seen:
                raise self._refused(f'$ref "{value[:100]}" leads to itself')
            seen.add(reference)
            target = self._target(reference)
            if target is None:
                raise self._refused(f'$ref "{value[:100]}" leads to nothing in this schema')
            reference = target.get("$ref")
        return value

    def _target(self, reference: str) -> Mapping[str, Any] | None:
        place: Any = self._root
        if not reference.startswith("#"):
            return None
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, dict):
                place = place.get(key)
            elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
                place = place[int(key)]
            else:
                return None
        if isinstance(place, bool):
            return {}
        return place if isinstance(place, dict) else None

    def _refused(self, message: str) -> RequestError:
        return refused(message, self._param)


def _applies(keyword: str, value: Any) -> bool:
    """Whether a grammar can follow the keyword, with this value."""
    if keyword == "format":
        return value in _FORMATS
    if keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
        return False  # their meaning in an older draft
    return keyword in _CHECKS or keyword in _STRUCTURE


def _is_kinds(value: Any) -> bool:
    kinds = value if isinstance(value, list) else [value]
    return bool(kinds) and all(isinstance(kind, str) and kind in _KINDS for kind in kinds)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "type": _is_kinds,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "const": lambda value: True,
    "required": _is_names,
    "minProperties": _is_count,
    "maxProperties": _is_count,
    "minItems": _is_count,
    "maxItems": _is_count,
    "minLength": _is_count,
    "maxLength": _is_count,
    "pattern": lambda value: isinstance(value, str),
    "format": lambda value: True,
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
    "multipleOf": lambda value: _is_number(value) and value > 0,
}


def _encoded(schema: object, param: str) -> bytes:
    try:
        return msgspec.json.encode(schema)
    except (RecursionError, ValueError):
        raise refused("the schema is nested too deeply", param) from None
