"""A block of tool calls as grammar, tag by tag as the chat template writes it.

    <minimax:tool_call>\n(<invoke name="f">\n...</invoke>\n)+</minimax:tool_call>
    NS<tool_call>\n(NS<invoke name="f">...NS</invoke>\n)+NS</tool_call>

Markers that are tokens of the vocabulary must come as those tokens, so what is written can be told
from what only looks like it. Knows tags and tools. Does not know when a call must come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from mserve.core import RequestError
from mserve.matcher import control_token, literal
from mserve.text.dialects import Dialect, SchemaView, view_of
from mserve.text.grammar.arguments import Elements, Parameters
from mserve.text.grammar.bare import Stop
from mserve.text.grammar.rules import Rules
from mserve.text.grammar.schema import clean, refused

MAX_TOOLS: Final = 512
MAX_NAME_CHARS: Final = 256


class Tool(msgspec.Struct, frozen=True):
    """A tool that may be called. ``parameters``: JSON Schema; none, or an empty one, says that
    there are no parameters. ``strict``: its calls must keep to the schema even where the model
    decides whether to call."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


def check_names(names: Sequence[str]) -> None:
    """Raises ``RequestError`` for names of tools that no markup can hold or tell apart."""
    seen = set()
    for number, name in enumerate(names):
        where = f"tools[{number}]"
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise RequestError(f"{where}: a name has 1 to {MAX_NAME_CHARS} characters", param=where)
        if not name.isprintable() or set(name) & set('"<>'):
            raise RequestError(
                f'{where}: a name must not hold < > " or control characters', param=where
            )
        if name in seen:
            raise RequestError(f'{where}: a second tool is called "{name}"', param=where)
        seen.add(name)


class CallBlock:
    """Writes the block for some of a request's tools."""

    def __init__(self, dialect: Dialect, marker_ids: Mapping[int, str]) -> None:
        """``marker_ids``: as ``dialects.marker_ids`` finds them."""
        self._dialect = dialect
        self._ids = {marker: token_id for token_id, marker in marker_ids.items()}
        self.passed_over: set[str] = set()

    @property
    def opening_text(self) -> str:
        """What begins a block, spelled out."""
        return self._dialect.tag(self._dialect.block_open)

    @property
    def opening_ids(self) -> tuple[int, ...]:
        """Tokens that begin markup of a call and nothing else."""
        token_id = self._ids.get(self._dialect.mark or self._dialect.block_open)
        return () if token_id is None else (token_id,)

    def written(self, tools: Sequence[Tool], *, parallel: bool, opened: bool) -> str:
        """A grammar of the whole block or, if it is ``opened``, of all after its opening tag.

        Raises ``RequestError`` for more tools than a grammar holds, ``invalid_schema`` for a schema
        that nothing written can meet."""
        if len(tools) > MAX_TOOLS:
            raise RequestError(
                f"calls of more than {MAX_TOOLS} tools cannot be forced or strict", param="tools"
            )
        rules = Rules()
        calls = rules.choice([self._call(rules, tool, n) for n, tool in enumerate(tools)])
        opening = "" if opened else self._tag(self._dialect.block_open)
        repeated = "+" if parallel else ""
        block_close = self._tag(self._dialect.block_close)
        return rules.text(rf'{opening} "\n" ({calls} "\n"){repeated} {block_close}')

    def _call(self, rules: Rules, tool: Tool, number: int) -> str:
        param = f"tools.{number}.parameters"
        given = tool.parameters or {"type": "object", "properties": {}}
        schema = clean(given, param)
        self.passed_over.update(schema.passed_over)
        own, parse = view_of(schema.schema), view_of(given if tool.parameters else {})
        arguments = self._arguments(rules, schema.schema, own, parse)
        if arguments is None:
            message = f"no call of {tool.name} that this model can write meets its schema"
            raise refused(message, param)
        dialect = self._dialect
        opening = self._tag(dialect.call_open + tool.name + dialect.call_open_end)
        return rules.rule(f"{opening} {arguments} {self._tag(dialect.call_close)}")

    def _arguments(
        self, rules: Rules, root: Mapping[str, Any], own: SchemaView, parse: SchemaView
    ) -> str | None:
        if self._dialect.value_form == "parameters":
            parameters = Parameters(rules, root).of(own, parse)
            return None if parameters is None else rf'"\n" {parameters}'
        mark = self._dialect.mark
        stop = Stop(self._marker(mark), mark, is_text=mark not in self._ids)
        return Elements(rules, root, stop).of(own, parse)

    def _tag(self, tag: str) -> str:
        if tag in self._dialect.markers or not self._dialect.mark:
            return self._marker(tag)
        return f"{self._marker(self._dialect.mark)} {self._marker(tag)}"

    def _marker(self, text: str) -> str:
        token_id = self._ids.get(text)
        return literal(text) if token_id is None else control_token(token_id)
