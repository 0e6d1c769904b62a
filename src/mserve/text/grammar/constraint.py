"""From what a request asks for to the constraint that the engine follows.

    thinking ──closer──> answer | block of calls        the model must: schema, required, named
    thinking ──closer──> content ──opener──> calls      the model may: strict tools
    thinking ──closer──> content, no opener             the model must not: none

Thinking is free: it ends where the dialect's state machine says that it does, and the state in
which the prompt ends says whether it has begun. Knows the parts and their order. Does not know
the language of grammars (``matcher``) or what an answer's form looks like (``answer``, ``calls``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from mserve.core import Constraint, FreeText, RequestError
from mserve.matcher import grammar_text
from mserve.text.dialects import Dialect, Start
from mserve.text.grammar.answer import AnswerGrammar, answer_grammar
from mserve.text.grammar.calls import CallBlock, Tool, check_names

_ANYTHING: Final = {"lark_grammar": "start: T\nT: /(?s:.*)/\n"}


class NamedTool(msgspec.Struct, frozen=True):
    """``tool_choice`` that names one."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "required", "none"] | NamedTool


class Constrained(msgspec.Struct, frozen=True):
    """``param``: the field to blame if the grammar turns out to be too much. ``passed_over``:
    schema keywords without effect, as ``field.keyword``, for the header that lists such."""

    constraint: Constraint
    param: str
    passed_over: tuple[str, ...]


def constraint_for(
    dialect: Dialect,
    marker_ids: Mapping[int, str],
    start: Start,
    *,
    response_format: Mapping[str, Any] | None = None,
    structured_outputs: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] = (),
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = True,
) -> Constrained | None:
    """What the answer must follow, or ``None`` if it is free.

    ``marker_ids``: from ``dialects.marker_ids``. ``start``: where the rendered prompt ends. Under
    ``auto`` calls are constrained if a tool is strict or ``parallel_tool_calls`` is off.

    Raises ``RequestError`` naming the field; ``invalid_schema`` for a schema, regex or grammar
    that cannot be. What takes too long is found by ``GrammarChecker``.
    """
    check_names([tool.name for tool in tools])
    answer = answer_grammar(response_format, structured_outputs)
    chosen = _chosen(tools, tool_choice)
    block = CallBlock(dialect, marker_ids)
    must_call = bool(chosen) and tool_choice != "auto"
    if must_call:
        answer = None
    if tool_choice == "auto" and answer is None:
        if not any(tool.strict for tool in chosen) and (parallel_tool_calls or not chosen):
            return None
        calls = block.written(chosen, parallel=parallel_tool_calls, opened=True)
        content = FreeText(ends_with=block.opening_text, may_end=True)
        after = (*_thinking(dialect, start, block, may_end=True), content)
        return _constrained({"whole": {"lark_grammar": calls}}, after, "tools", block, None)
    if not chosen and answer is None:
        return _without_calls(dialect, start, block) if tools else None
    grammars: dict[str, Mapping[str, Any]] = {}
    if answer is not None:
        grammars["answer"] = answer.grammar
    if chosen:
        calls = block.written(chosen, parallel=parallel_tool_calls, opened=False)
        grammars["calls"] = {"lark_grammar": calls}
    whole = {"lark_grammar": _whole(dialect, list(grammars))}
    after = _thinking(dialect, start, block if tools else None, may_end=False)
    param = "tools" if answer is None else answer.param
    return _constrained({"whole": whole, **grammars}, after, param, block, answer)


def _chosen(tools: Sequence[Tool], tool_choice: ToolChoice) -> Sequence[Tool]:
    """The tools that may be called."""
    if isinstance(tool_choice, NamedTool):
        named = [tool for tool in tools if tool.name == tool_choice.name]
        if not named:
            message = f'tool_choice names "{tool_choice.name[:100]}", which is not among the tools'
            raise RequestError(message, param="tool_choice")
        return named
    if tool_choice == "required" and not tools:
        raise RequestError("tool_choice is required, and there are no tools", param="tool_choice")
    return () if tool_choice == "none" else tools


def _thinking(
    dialect: Dialect, start: Start, block: CallBlock | None, *, may_end: bool
) -> tuple[FreeText, ...]:
    """Calls come after thinking, so what begins one cannot come within."""
    if start is Start.CONTENT:
        return ()
    return (
        FreeText(
            ends_with=dialect.think_close,
            begins_with=dialect.think_open if start is Start.EITHER else "",
            may_end=may_end,
            forbidden_ids=() if block is None else block.opening_ids,
        ),
    )


def _without_calls(dialect: Dialect, start: Start, block: CallBlock) -> Constrained:
    """Markers of calls cannot come; text that spells one is text."""
    content = FreeText(ends_with=block.opening_text, may_end=True, forbidden_ids=block.opening_ids)
    after = (*_thinking(dialect, start, block, may_end=True), content)
    return _constrained({"whole": _ANYTHING}, after, "tool_choice", block, None)


def _whole(dialect: Dialect, names: Sequence[str]) -> str:
    """The blanks that the template writes after thinking belong to no answer; models write them."""
    most = len(dialect.after_think_close + dialect.before_block)
    blanks = f"BLANKS: /\\n{{1,{most}}}/\n" if most else ""
    return (
        f"start: {'BLANKS? ' if most else ''}({' | '.join('@' + name for name in names)})\n{blanks}"
    )


def _constrained(
    grammars: Mapping[str, Mapping[str, Any]],
    after: tuple[FreeText, ...],
    param: str,
    block: CallBlock,
    answer: AnswerGrammar | None,
) -> Constrained:
    passed_over = [f"tools.{keyword}" for keyword in sorted(block.passed_over)]
    if answer is not None:
        field = answer.param.partition(".")[0]
        passed_over += [f"{field}.{keyword}" for keyword in answer.passed_over]
    constraint = Constraint(grammar=grammar_text(grammars), after=after)
    return Constrained(constraint, param, tuple(passed_over))
