"""Random tools, values that fit them, and the answers that chat templates make of them.

The generator knows which values a wire form can tell apart, and keeps to those: strings that
share a union with something else begin with "~", for instance. What it yields besides the value
is what should come back.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer

from mserve.text import ByteLevelTokenizer, JinjaChatTemplate, marker_ids
from mserve.text.dialects.names import M2, M3
from mserve.toy.tokenizer import chat_template, tokenizer_json

DIALECTS = {"m2": M2, "m3": M3}
SPECIAL = {"bos_token": "]~!b[", "eos_token": "[e~["}
TEMPLATES = {
    arch: JinjaChatTemplate(chat_template(arch), special_tokens=SPECIAL, where=arch)
    for arch in ("m2", "m3")
}


@functools.cache
def tokenizer(arch: str) -> ByteLevelTokenizer:
    return ByteLevelTokenizer(Tokenizer.from_str(tokenizer_json(arch, 1500)))


@functools.cache
def real_ids(arch: str) -> dict[int, str]:
    return marker_ids(DIALECTS[arch], tokenizer(arch))


SNIPPETS = (
    *("", "a", " ", "\n", "x y", "~", "3", "true", "null", "{", "[1]", '"', "\\", "é", "🙂"),
    *("</parameter>", "</invoke>", "<parameter name=", "<item>", "</item>", "</k>", "<k>"),
    *("]<]", "]<]minimax", "]", "<", ">", "</", "<think>", "</think>", "\t", "\u2028", "{}"),
)
STRINGS = st.lists(st.sampled_from(SNIPPETS), max_size=3).map("".join)
KEYS = ("k", "a", "b c", "item", "ключ", "k-1", "invoke", "x>y", "name")
NUMBERS = st.one_of(
    st.integers(-100, 100), st.sampled_from([2**70, -1]), st.floats(allow_nan=False, width=32)
).filter(lambda number: number not in (float("inf"), float("-inf")))

Made = tuple[dict[str, Any], Any]
"""A schema and a value that it admits."""


@st.composite
def made(draw: Any, depth: int, definitions: dict[str, Any], in_union: bool = False) -> Made:
    """``in_union``: strings and containers must be told apart by their text."""
    kinds = ["string", "string", "integer", "number", "boolean", "enum", "null", "untyped"]
    if depth:
        kinds += ["object", "object", "array", "array", "tree"]
        kinds += [] if in_union else ["union", "tagged", "all of", "defined"]
    match draw(st.sampled_from(kinds)):
        case "string":
            text = draw(STRINGS)
            return {"type": "string"}, "~" + text if in_union else text
        case "integer":
            return {"type": "integer"}, draw(st.integers(-(2**40), 2**40))
        case "number":
            return {"type": "number"}, draw(NUMBERS)
        case "boolean":
            return {"type": "boolean"}, draw(st.booleans())
        case "enum":
            choices = ["~red", "~4", "~"] if in_union else ["red", "4", "", "~ x"]
            return {"enum": choices}, draw(st.sampled_from(choices))
        case "null":
            number = draw(st.one_of(st.none(), st.integers(0, 9)))
            return {"type": ["null", "integer"]}, number
        case "untyped":
            values = ["~x", "~\n{", 7, -1.5, True, {"k": 3}, {"a": {"k": "~"}}, [1, "~b"], [[True]]]
            return {}, draw(st.sampled_from(values))
        case "object":
            return draw(objects(depth - 1, definitions, nonempty=in_union))
        case "array":
            return draw(arrays(depth - 1, definitions, nonempty=in_union))
        case "tree":
            definitions["tree"] = TREE
            return {"$ref": "#/$defs/tree"}, draw(TREES)
        case "union":
            return draw(unions(depth - 1, definitions))
        case "tagged":
            return draw(tagged(depth - 1, definitions))
        case "all of":
            schema, value = draw(made(depth - 1, definitions))
            return {"allOf": [schema], "description": "one part"}, value
        case _:
            schema, value = draw(made(depth - 1, definitions))
            name = f"d/{len(definitions)}"
            definitions[name] = schema
            return {"$ref": "#/$defs/" + name.replace("/", "~1")}, value


TREE = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    },
}
TREES = st.recursive(
    st.fixed_dictionaries({"label": st.sampled_from(SNIPPETS)}),
    lambda trees: st.fixed_dictionaries(
        {"label": st.sampled_from(SNIPPETS), "children": st.lists(trees, max_size=2)}
    ),
    max_leaves=3,
)


@st.composite
def objects(draw: Any, depth: int, definitions: dict[str, Any], nonempty: bool = False) -> Made:
    names = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=int(nonempty), max_size=3))
    if nonempty:
        names = [name for name in names if name != "item"] or ["k"]
    parts = {name: draw(made(depth, definitions)) for name in names}
    schema = {"type": "object", "properties": {name: part[0] for name, part in parts.items()}}
    value = {name: part[1] for name, part in parts.items()}
    if draw(st.booleans()):
        schema["additionalProperties"] = {"type": "integer"}
        value["more"] = 5
    if nonempty and all(item is None for item in value.values()):
        schema["properties"]["k"], value["k"] = {"type": "integer"}, 1
    return schema, value


@st.composite
def arrays(draw: Any, depth: int, definitions: dict[str, Any], nonempty: bool = False) -> Made:
    schema, first = draw(made(depth, definitions))
    if nonempty and first is None:
        schema, first = {"type": "boolean"}, False
    value = [first] * draw(st.integers(int(nonempty), 3))
    return {"type": "array", "items": schema}, value


@st.composite
def unions(draw: Any, depth: int, definitions: dict[str, Any]) -> Made:
    """One container at most, strings last: what the text alone can tell."""
    schema, value = draw(made(depth, definitions, in_union=True))
    if schema.get("type") not in ("string", "integer", "number", "boolean", "array", "object"):
        return schema, value
    others: list[dict[str, Any]] = [{"type": "null"}]
    if schema["type"] == "string":
        others += [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]
        return {draw(st.sampled_from(["anyOf", "oneOf"])): [*others, schema]}, value
    return {"anyOf": [*others, schema, {"type": "string"}]}, value


@st.composite
def tagged(draw: Any, depth: int, definitions: dict[str, Any]) -> Made:
    """Objects told apart by a constant, whose other keys have different types."""
    tag = draw(st.sampled_from(["text", "count"]))
    kinds = {"text": {"type": "string"}, "count": {"type": "integer"}}
    branches = [
        {"type": "object", "properties": {"type": {"const": name}, "value": kind}}
        for name, kind in kinds.items()
    ]
    return {"oneOf": branches}, {"type": tag, "value": "12" if tag == "text" else 12}


@st.composite
def tools(draw: Any) -> Made:
    """A tool's schema, and arguments for it."""
    definitions: dict[str, Any] = {}
    schema, value = draw(objects(2, definitions))
    return {**schema, "$defs": definitions}, value


def expected(arch: str, value: Any) -> Any:
    """What comes back: M3 leaves ``null`` out."""
    if arch == "m3" and isinstance(value, dict):
        return {k: expected(arch, item) for k, item in value.items() if item is not None}
    if arch == "m3" and isinstance(value, list):
        return [expected(arch, item) for item in value if item is not None]
    return value


def answer(arch: str, message: dict[str, Any]) -> str:
    """The assistant's turn as the template writes it, from where generation would begin."""
    text = TEMPLATES[arch].render(
        [{"role": "user", "content": "?"}, {"role": "assistant", **message}],
        add_generation_prompt=False,
        variables={},
    )
    text = text.rpartition("]~b]ai\n")[2].removesuffix("[e~[\n")
    return text.removeprefix("<think>\n").removeprefix("<mm:think>")


def call_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def canonical(value: Any) -> str:
    """Text that differs whenever two JSON values do: ``true`` is not 1, and 1 is not 1.0."""
    return json.dumps(value, sort_keys=True)
