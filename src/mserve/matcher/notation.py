"""Small help for those who write grammars: the notation of the library, by example.

    start: PRE? @answer          "@" is another grammar of the same list
    PRE: /\\n{1,3}/               terminals are regular expressions; & and ~ are "and" and "not"
    value: <[200058]> "</k>"     a control token by id, then literal text

Knows the notation only. Does not know what is written in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mserve.core import RequestError


def grammar_text(grammars: Mapping[str, Mapping[str, Any]]) -> str:
    """Several grammars as one text, the first being the whole; each is ``{"lark_grammar": text}``
    or ``{"json_schema": schema}``."""
    named = [{"name": name, **grammar} for name, grammar in grammars.items()]
    return json.dumps({"grammars": named}, ensure_ascii=False)


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def control_token(token_id: int) -> str:
    return f"<[{token_id}]>"


def inline_schema(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps(schema, ensure_ascii=False)


def escaped(text: str) -> str:
    """A regular expression, to stand between slashes, for ``text`` and nothing else."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def regex_body(regex: str) -> str:
    """A user's regular expression, to stand between slashes; ``\\d`` and ``\\w`` are ASCII."""
    from llguidance import regex_to_lark

    body: str = regex_to_lark(regex, "dw")
    return body


def from_ebnf(text: str) -> str:
    """A user's grammar in this notation or in that of GBNF (``root ::= ...``), in this one.
    Raises ``RequestError`` if it is neither."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        converted: str = any_to_lark(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # the library raises bare Exception for every defect
        reason = str(error)[:200]
    else:
        return converted
    raise RequestError(f"the grammar cannot be used: {reason}", code="invalid_schema")
