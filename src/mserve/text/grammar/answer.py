"""What a request asks its answer to look like, as one grammar.

    response_format      {"type": "json_object"}, {"type": "json_schema", "json_schema": {...}}
    structured_outputs   {"json": schema}, {"json_object": true}, {"regex": ...}, {"choice": [...]},
                         {"grammar": EBNF}

Knows the fields of requests and their bounds. Does not know where in an answer it begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mserve.core import RequestError
from mserve.matcher import from_ebnf, literal, regex_body
from mserve.text.grammar.bare import COMPACT_STYLE, JSON_STYLE
from mserve.text.grammar.rules import Rules
from mserve.text.grammar.schema import clean, refused

MAX_TEXT_CHARS: Final = 64 << 10
MAX_CHOICES: Final = 10_000
_KINDS: Final = ("json", "json_object", "regex", "choice", "grammar")
_SWITCHES: Final = ("json_object", "disable_any_whitespace")


class AnswerGrammar(msgspec.Struct, frozen=True):
    """``grammar``: an entry for ``matcher.grammar_text``. ``passed_over``: schema keywords that
    it does not follow."""

    grammar: dict[str, Any]
    param: str
    passed_over: tuple[str, ...] = ()


def answer_grammar(
    response_format: Mapping[str, Any] | None, structured_outputs: Mapping[str, Any] | None
) -> AnswerGrammar | None:
    """``None``: any text. Raises ``RequestError`` naming the field that is wrong."""
    asked = _of_response_format(response_format) if response_format else None
    if not structured_outputs:
        return asked
    if asked is not None:
        raise RequestError(
            "response_format and structured_outputs cannot be combined; send one of them",
            param="structured_outputs",
        )
    return _of_structured_outputs(structured_outputs)


def _of_response_format(asked: Mapping[str, Any]) -> AnswerGrammar | None:
    match asked.get("type"):
        case "text":
            return None
        case "json_object":
            return _json({"type": "object"}, "response_format")
        case "json_schema":
            described = asked.get("json_schema")
            if not isinstance(described, dict) or "schema" not in described:
                raise RequestError(
                    "response_format.json_schema must be an object that holds a schema",
                    param="response_format.json_schema",
                )
            return _json(described["schema"], "response_format.json_schema.schema")
        case _:
            raise RequestError(
                "response_format.type must be text, json_object or json_schema",
                param="response_format.type",
            )


def _of_structured_outputs(asked: Mapping[str, Any]) -> AnswerGrammar | None:
    given = {
        name: value
        for name, value in asked.items()
        if value is not None and not (value is False and name in _SWITCHES)
    }
    for name in given:
        if name not in (*_KINDS, *_SWITCHES):
            raise RequestError(
                f"structured_outputs.{name[:64]} is not supported",
                param=f"structured_outputs.{name[:64]}",
                code="unsupported_parameter",
            )
    compact = given.pop("disable_any_whitespace", False) is True
    if not given and not compact:
        return None
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs must hold exactly one of {', '.join(_KINDS)}",
            param="structured_outputs",
        )
    ((kind, value),) = given.items()
    param = f"structured_outputs.{kind}"
    match kind:
        case "json_object":
            return _json({"type": "object"}, param, compact=compact)
        case "json":
            return _json(_parsed(value, param), param, compact=compact)
        case "choice":
            return _lark(_choice(value, param), param)
        case "regex":
            return _lark(f"start: T\nT: /{regex_body(_text(value, param))}/\n", param)
        case _:
            return _lark(_ebnf(_text(value, param), param), param)


def _json(schema: object, param: str, *, compact: bool = False) -> AnswerGrammar:
    cleaned = clean(schema, param)
    style = COMPACT_STYLE if compact else JSON_STYLE
    grammar = {"json_schema": {**cleaned.schema, "x-guidance": style}}
    return AnswerGrammar(grammar, param, cleaned.passed_over)


def _lark(text: str, param: str) -> AnswerGrammar:
    return AnswerGrammar({"lark_grammar": text}, param)


def _choice(choices: Any, param: str) -> str:
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise RequestError(f"choice must be a list of 1 to {MAX_CHOICES} texts", param=param)
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError("choice must hold texts, none of them empty", param=param)
    if sum(map(len, choices)) > MAX_TEXT_CHARS:
        raise refused(f"the choices have more than {MAX_TEXT_CHARS} characters", param)
    rules = Rules()  # one lexeme: a rule for each would be followed side by side
    return rules.text(rules.terminal(" | ".join(dict.fromkeys(map(literal, choices)))))


def _ebnf(text: str, param: str) -> str:
    try:
        return from_ebnf(text)
    except RequestError as error:
        raise refused(error.message, param) from None


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{param} must be a text that is not empty", param=param)
    if len(value) > MAX_TEXT_CHARS:
        raise refused(f"{param} has more than {MAX_TEXT_CHARS} characters", param)
    return value


def _parsed(value: Any, param: str) -> Any:
    """vLLM takes a schema as an object or as its text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise refused("the schema is not valid JSON", param) from None
