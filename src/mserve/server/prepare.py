"""From a ``Turn`` to all that a generation needs: prompt, parser, sampling, and what to tell the
caller beside the answer.

    thinking switches ──> template variables, where the answer starts, budget, warnings
    messages, tools ────> the template's form ──> text ──> token ids
    tools, format ──────> parser, constraint

Knows the checkpoint's dialect and template. Does not know which API asked.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import msgspec

from mserve.core import RequestError, SamplingParams, ThinkingBudget
from mserve.server.generation import Generation
from mserve.server.off_loop import off_loop_if_long
from mserve.server.prompts import Prompt, chat_prompt, ignored_variables
from mserve.server.service import Service, TextTools
from mserve.server.turn import Turn
from mserve.text import (
    THINKING_VARIABLES,
    DialectParser,
    KeptThinking,
    OutputParser,
    PlainParser,
    Start,
    ThinkingPlan,
    Tools,
    grammar,
    normalised,
    plan_thinking,
    with_stable_prefix,
)
from mserve.text.grammar import Constrained, NamedTool, constraint_for
from mserve.wire import Ready


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A turn, ready to be generated."""

    turn: Turn
    prompt: Prompt
    sampling: SamplingParams
    start: Start
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def within_context(self, ready: Ready) -> Prepared:
        """With ``max_tokens`` cut to what the context still holds."""
        room = max(ready.max_model_len - len(self.prompt.token_ids), 1)
        if self.sampling.max_tokens is None or self.sampling.max_tokens <= room:
            return self
        sampling = msgspec.structs.replace(self.sampling, max_tokens=room)
        return msgspec.structs.replace(self, sampling=sampling)

    def generate(
        self, service: Service, request_id: str, *, call_id_prefix: str = "call"
    ) -> Generation:
        """Submit it. Raises ``RequestError`` for what cannot fit, ``OverloadedError`` for what
        cannot now."""
        service.note_prompt(request_id, self.prompt.token_ids)
        return Generation(
            service,
            request_id,
            [self.prompt],
            self.sampling,
            new_parser=self._new_parser(service.text, call_id_prefix),
            parallel_calls=self.turn.parallel_tool_calls,
            priority=self.turn.priority,
            cache_salt=self.turn.cache_salt,
        )

    def _new_parser(self, text: TextTools, call_id_prefix: str) -> Callable[[], OutputParser]:
        if text.dialect is None:
            return PlainParser
        turn = self.turn
        may_call = turn.tools and turn.tool_choice.mode != "none"
        return partial(
            DialectParser,
            text.dialect,
            self.start,
            Tools({tool.name: tool.parameters for tool in turn.tools}) if may_call else None,
            marker_ids=text.marker_ids,
            new_id=partial(_new_call_id, call_id_prefix),
        )


async def prepare(service: Service, ready: Ready, turn: Turn) -> Prepared:
    """Raises ``RequestError`` for what this model cannot do or its template refuses."""
    text = service.text
    if turn.tools and text.dialect is None:
        raise RequestError(
            "this checkpoint's form of tool calls is not known: start the server with "
            "--tool-call-parser",
            param="tools",
            code="unsupported_parameter",
        )
    plan = plan_thinking(
        text.dialect, turn.thinking, turn.template_variables, default=turn.thinking_default
    )
    sampling, warnings = turn.sampling, list(plan.warnings)
    if plan.budget is not None:
        budget = _budget(text, plan)
        if budget is None:
            warnings.append(
                "the thinking budget has no effect: this vocabulary has no think tokens"
            )
        sampling = msgspec.structs.replace(sampling, thinking_budget=budget)
    ignored = [*turn.notes, *_ignored_variables(text, turn)]
    num_chars = len(msgspec.json.encode([turn.messages, turn.tools, turn.text_format]))
    write = partial(_written, service, ready, turn, plan)
    constrained, prompt = await off_loop_if_long(num_chars, write)
    if constrained is not None:
        await service.grammars.check(constrained)
        sampling = msgspec.structs.replace(sampling, constraint=constrained.constraint)
        ignored += constrained.passed_over
    sampling.validate(ready.vocab_size)
    return Prepared(
        turn=turn,
        prompt=prompt,
        sampling=sampling,
        start=plan.start,
        ignored=tuple(ignored),
        warnings=tuple(warnings),
    )


def _written(
    service: Service, ready: Ready, turn: Turn, plan: ThinkingPlan
) -> tuple[Constrained | None, Prompt]:
    """All that takes longer the more the request says."""
    return _constraint(service.text, turn, plan.start), _prompt(service, ready, turn, plan)


def _prompt(service: Service, ready: Ready, turn: Turn, plan: ThinkingPlan) -> Prompt:
    text = service.text
    messages = normalised(with_stable_prefix(turn.messages, service.config.stable_prefix_rules))
    kept = None
    if service.config.keep_thinking and text.dialect is not None:
        quote = partial(text.tokenizer.quote, hidden_only=True)
        kept = KeptThinking(messages, text.dialect, quote)
    return chat_prompt(
        text,
        ready,
        messages if kept is None else kept.messages,
        # Also where none may be called: without them the prompt would begin differently.
        tools=[tool.for_template() for tool in turn.tools] or None,
        add_generation_prompt=turn.add_generation_prompt,
        variables=plan.variables,
        add_special_tokens=turn.add_special_tokens,
        edit=None if kept is None else kept.restored,
    )


def _budget(text: TextTools, plan: ThinkingPlan) -> ThinkingBudget | None:
    """``None`` where thinking has no markers that are tokens."""
    assert plan.budget is not None
    ids = {marker: token_id for token_id, marker in text.marker_ids.items()}
    dialect = text.dialect
    if dialect is None or not {dialect.think_open, dialect.think_close} <= ids.keys():
        return None
    return ThinkingBudget(
        max_tokens=plan.budget,
        close_id=ids[dialect.think_close],
        open_id=ids[dialect.think_open],
        is_open=plan.start is Start.THINKING,
    )


def _ignored_variables(text: TextTools, turn: Turn) -> list[str]:
    """Template variables without effect. Switches of thinking always have one, or a warning."""
    known = THINKING_VARIABLES if text.dialect is not None else frozenset()
    others = {name: 0 for name in turn.template_variables if name not in known}
    return ignored_variables(text, others)


def _constraint(text: TextTools, turn: Turn, start: Start) -> Constrained | None:
    """What the answer must follow. ``None``: it is free, or this prompt does not ask for one."""
    form = turn.text_format
    if text.dialect is None:
        if form.is_free:
            return None
        name = "structured_outputs" if form.structured_outputs else "response_format"
        raise RequestError(
            f"{name} needs a known form of thinking: start the server with --reasoning-parser",
            param=name,
            code="unsupported_parameter",
        )
    choice = turn.tool_choice
    return constraint_for(
        text.dialect,
        text.marker_ids,
        start,
        response_format=form.response_format,
        structured_outputs=form.structured_outputs,
        tools=[grammar.Tool(tool.name, tool.parameters, tool.strict) for tool in turn.tools],
        tool_choice=NamedTool(choice.name or "") if choice.mode == "named" else choice.mode,
        parallel_tool_calls=turn.parallel_tool_calls,
    )


def _new_call_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
