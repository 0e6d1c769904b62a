"""One answer to all the switches by which clients ask for thinking, per model.

    thinking_mode        enabled, disabled, adaptive               as M3's template reads it
    enable_thinking      true, false                               in chat_template_kwargs or beside
    thinking             {"type": ..., "budget_tokens": n}, bool   Messages, hosted MiniMax
    reasoning            {"effort": ..., "max_tokens": n}          Responses, routers
    reasoning_effort     none, minimal, low, ...                   chat completions
    thinking_token_budget, thinking_budget                         a budget alone

The first that says something wins. Effort levels other than ``none`` do not change the mode,
since neither model has depths of thinking and M3's mode stands at the head of its prompt, where a
change voids the cache. What a model cannot do is said in a warning, not hidden. Knows names and
meanings. Does not know requests or who enforces a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from mserve.core import RequestError
from mserve.text.dialects import Dialect, Start, ThinkingMode

THINKING_VARIABLES: Final = frozenset({"thinking_mode", "enable_thinking", "thinking"})
"""Names in ``chat_template_kwargs`` that are switches here, whether the template reads them or
not."""

_MODES: Final[dict[str, ThinkingMode]] = {
    "enabled": "enabled",
    "disabled": "disabled",
    "adaptive": "adaptive",
    "auto": "adaptive",
}
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class ThinkingPlan(msgspec.Struct, frozen=True):
    """``variables`` for the template, where the answer ``start``s, and what to tell the caller.
    ``budget``: thinking must close after so many tokens; ``None``: when the model likes."""

    variables: dict[str, Any]
    start: Start
    warnings: tuple[str, ...] = ()
    budget: int | None = None


def plan_thinking(
    dialect: Dialect | None,
    switches: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    default: ThinkingMode | None = None,
) -> ThinkingPlan:
    """``switches``: fields of the request by the names above. ``variables``:
    ``chat_template_kwargs``, whose switches come after those of the request itself. ``default``:
    the mode of a request that says nothing (Messages differs); without it, the template's own.

    Raises ``RequestError`` for a value that is no switch's. ``dialect`` ``None``: a model whose
    thinking we cannot tell from its content; nothing is done.
    """
    others = {name: value for name, value in variables.items() if name not in THINKING_VARIABLES}
    if dialect is None:
        return ThinkingPlan(dict(variables), Start.CONTENT)
    within = {name: value for name, value in variables.items() if name in THINKING_VARIABLES}
    said = {**within, **{name: value for name, value in switches.items() if value is not None}}
    warnings: list[str] = []
    budget = _budget(said)
    modes = dict(_modes(said))
    if budget == 0:
        modes.setdefault("a thinking budget of 0", "disabled")
    asked = next(iter(modes.items()), None)
    if len(set(modes.values())) > 1 and asked is not None:
        warnings.append(f"thinking switches disagree: {asked[0]} was followed")
    model = f"MiniMax-{dialect.family.upper()}"
    effort = _effort(said)
    if effort not in (None, "none"):
        warnings.append(f"reasoning effort {effort} has no effect: {model} has no such levels")
    mode = asked[1] if asked is not None else default
    if mode is not None and mode not in dialect.starts:
        if mode == "disabled" and budget != 0:
            warnings.append(f"thinking cannot be disabled: {model} always thinks")
        mode = None
    if mode is not None and dialect.mode_variable is not None:
        others[dialect.mode_variable] = mode
    start = dialect.starts[mode or dialect.default_mode]
    return ThinkingPlan(others, start, tuple(warnings), budget)


def _modes(said: Mapping[str, Any]) -> Iterator[tuple[str, ThinkingMode]]:
    """Who asks for which mode, the strongest first."""
    if (value := said.get("thinking_mode")) is not None:
        yield "thinking_mode", _mode("thinking_mode", value)
    if (value := said.get("enable_thinking")) is not None:
        yield "enable_thinking", _on_off("enable_thinking", value)
    thinking = said.get("thinking")
    if isinstance(thinking, dict):
        if (value := thinking.get("type")) is not None:
            yield "thinking.type", _mode("thinking.type", value)
    elif thinking is not None:
        yield "thinking", _on_off("thinking", thinking)
    reasoning = said.get("reasoning")
    if isinstance(reasoning, dict) and (value := reasoning.get("enabled")) is not None:
        yield "reasoning.enabled", _on_off("reasoning.enabled", value)
    if _effort(said) == "none":
        yield "a reasoning effort of none", "disabled"


def _mode(name: str, value: object) -> ThinkingMode:
    mode = _MODES.get(value) if isinstance(value, str) else None
    if mode is None:
        raise RequestError(f"{name} must be enabled, disabled or adaptive", param=name)
    return mode


def _on_off(name: str, value: object) -> ThinkingMode:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", param=name)
    return "enabled" if value else "disabled"


def _effort(said: Mapping[str, Any]) -> str | None:
    reasoning = said.get("reasoning")
    nested = reasoning.get("effort") if isinstance(reasoning, dict) else None
    name = "reasoning_effort" if nested is None else "reasoning.effort"
    effort = said.get("reasoning_effort") if nested is None else nested
    if effort is not None and effort not in _EFFORTS:
        raise RequestError(f"{name} must be one of {', '.join(_EFFORTS)}", param=name)
    return effort


def _budget(said: Mapping[str, Any]) -> int | None:
    """The first budget given; -1 is none."""
    thinking, reasoning = said.get("thinking"), said.get("reasoning")
    places = {
        "thinking_token_budget": said.get("thinking_token_budget"),
        "thinking_budget": said.get("thinking_budget"),
        "thinking.budget_tokens": thinking.get("budget_tokens")
        if isinstance(thinking, dict)
        else None,
        "reasoning.max_tokens": reasoning.get("max_tokens")
        if isinstance(reasoning, dict)
        else None,
    }
    for name, value in places.items():
        if value is None:
            continue
        if type(value) is not int or value < -1:
            raise RequestError(f"{name} must be a number of tokens, or -1 for no limit", param=name)
        return None if value == -1 else value
    return None
