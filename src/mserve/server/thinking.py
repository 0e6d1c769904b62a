"""INTERIM mapping, to be replaced by mserve.text."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from mserve.text import Dialect, Start


class ThinkingPlan(msgspec.Struct, frozen=True):
    variables: dict[str, Any]
    start: Start
    warnings: tuple[str, ...] = ()
    budget: int | None = None


def plan_thinking(
    dialect: Dialect | None, switches: dict[str, Any], variables: dict[str, Any]
) -> ThinkingPlan:
    if dialect is None:
        return ThinkingPlan(variables, Start.CONTENT)
    mode = None
    s = {
        **switches,
        **{k: variables[k] for k in ("enable_thinking", "thinking_mode") if k in variables},
    }
    t = s.get("thinking")
    budget = s.get("thinking_token_budget") or s.get("thinking_budget")
    if isinstance(t, dict):
        mode = t.get("type")
        budget = budget or t.get("budget_tokens")
    elif isinstance(t, bool):
        mode = "enabled" if t else "disabled"
    if s.get("enable_thinking") is not None:
        mode = "enabled" if s["enable_thinking"] else "disabled"
    mode = s.get("thinking_mode") or mode
    if mode is None and s.get("reasoning_effort"):
        mode = "disabled" if s["reasoning_effort"] == "none" else None
    mode = mode or dialect.default_mode
    warnings = ()
    if mode not in dialect.starts:
        warnings = (f"this model cannot be put in thinking mode {mode}",)
        mode = dialect.default_mode
    if dialect.mode_variable:
        variables = {**variables, dialect.mode_variable: mode}
    return ThinkingPlan(variables, dialect.starts[mode], warnings, budget)


def normalised(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for m in messages:
        m = dict(m)
        r = m.pop("reasoning", None)
        m.setdefault("reasoning_content", r)
        calls = []
        for c in m.get("tool_calls") or ():
            f = dict(c.get("function") or c)
            a = f.get("arguments")
            if isinstance(a, str):
                try:
                    f["arguments"] = json.loads(a)
                except ValueError:
                    f["arguments"] = {"arguments": a}
            calls.append({**c, "function": f})
        if calls:
            m["tool_calls"] = calls
        out.append({k: v for k, v in m.items() if v is not None})
    return out
