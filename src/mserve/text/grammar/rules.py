"""A grammar as it is written: rules and terminals with names, each written once."""

from __future__ import annotations

from collections.abc import Sequence

from mserve.core import RequestError

_MAX_RULES = 20_000


class Rules:
    """Bodies in the notation of ``mserve.matcher``; equal bodies share a name."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def rule(self, body: str) -> str:
        return self._named("r", body)

    def choice(self, bodies: Sequence[str]) -> str:
        """A rule for any of ``bodies``, at least one."""
        return self.rule(" | ".join(dict.fromkeys(bodies)))

    def terminal(self, body: str) -> str:
        """``body``: regular expressions that make one lexeme."""
        return self._named("T", body)

    def text(self, start: str) -> str:
        lines = [f"{name}: {body}" for (_, body), name in self._names.items()]
        return "\n".join([f"start: {start}", *lines, ""])

    def _named(self, prefix: str, body: str) -> str:
        if len(self._names) >= _MAX_RULES:
            raise RequestError("the schemas make too large a grammar", code="invalid_schema")
        return self._names.setdefault((prefix, body), f"{prefix}{len(self._names)}")
