"""The one state machine: thinking, content, call. It sorts an answer's text into events.

              think_close                 block_open call_open
    THINKING ─────────────> CONTENT ──────────────────────────> CALL
        │     <─────────────   ^                                 │
        │      think_open      └─────────────────────────────────┘
        └──────────────────────────────────────────────────────> (a call ends thinking)

It starts where the prompt ends (``Start``), works on tokens and on plain text alike, and loses no
text: what is no markup after all is text of the state it stands in. ``docs/dialects.md`` lists
the rules for broken markup. Knows a dialect's data. Does not know values (the dialect's reader)
or HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from mserve.text.dialects.dialect import ArgumentsReader, CallContext, Dialect, Start
from mserve.text.dialects.markers import MAX_TAG_CHARS, Pattern, could_become, search_pattern
from mserve.text.dialects.schema import Tools
from mserve.text.events import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    ReasoningDelta,
)


class State(Enum):
    """Where the answer is. A grammar for the content or for calls holds from ``CONTENT`` on."""

    THINKING = "thinking"
    CONTENT = "content"
    CALL = "call"


_NOTHING: Final[Sequence[Event]] = ()


def new_call_id() -> str:
    return "call_" + secrets.token_hex(12)


class DialectParser:
    """Sorts one answer. Feed it tokens or text; call ``finish`` once at the end."""

    def __init__(
        self,
        dialect: Dialect,
        start: Start,
        tools: Tools | None,
        *,
        marker_ids: Mapping[int, str] | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """``tools``: schemas by name; calls of unknown tools are read without a schema. ``None``:
        calls are not looked for and their markup is content. ``marker_ids``: token ids of real
        markers (``marker_ids``); without them every marker is taken for spelled out."""
        self._dialect = dialect
        self._tools = tools
        self._marker_ids = marker_ids or {}
        self._new_id = new_id
        self._forms = _Forms.of(dialect)
        self.state = State.THINKING if start is Start.THINKING else State.CONTENT
        self._buffer = ""
        self._skip = ""  # blanks that the template writes here; dropped if they come
        self._said = False  # anything in this stretch of thinking or content
        self._blanks = ""  # blanks of a stretch in which nothing has been said yet
        self._in_block = False
        self._block_is_real = False
        self._events: list[Event] = []
        self._reader: ArgumentsReader | None = None
        self._num_calls = 0
        self._arguments: list[str] = []
        if dialect.thinking_is_content:
            self.state = State.CONTENT
            if start is Start.THINKING:
                self._blanks = dialect.think_open  # comes out with the first text
        self._pattern = self._pattern_now()

    def push(self, token_id: int, text: str) -> Sequence[Event]:
        """A token, and the text that it completed."""
        marker = self._marker_ids.get(token_id)
        if marker is not None:
            real = self._dialect.spellings.real.get(marker, marker)
            before = text.removesuffix(marker) if text.endswith(marker) else ""
            return self._push(before + real)
        return self.push_text(text)

    def push_text(self, text: str) -> Sequence[Event]:
        """Text of any length."""
        plain = self._said and not self._buffer and not self._skip and text
        if plain and self._pattern.search(text) is None:
            # The common case, kept short: it runs for most tokens of every stream.
            if self.state is State.CONTENT:
                return (ContentDelta(text),)
            if self.state is State.THINKING:
                return (ReasoningDelta(text),)
        return self._push(text)

    def _push(self, text: str) -> Sequence[Event]:
        self._buffer += text
        self._read(at_end=False)
        return self._take()

    def finish(self) -> Sequence[Event]:
        """The answer is over."""
        in_call = False
        self._read(at_end=True)
        while self._reader is not None:
            self._arguments_text(self._reader.finish())
            in_call = not self._reader.done
            self._buffer = self._reader.rest
            self._end_call()
            self._read(at_end=True)
        self._flush_blanks()
        thinking = self.state is State.THINKING
        self._events.append(Finished("call" if in_call else "thinking" if thinking else "nothing"))
        return self._take()

    def _take(self) -> Sequence[Event]:
        if not self._events:
            return _NOTHING
        events, self._events = self._events, []
        return events

    def _read(self, *, at_end: bool) -> None:
        """Until the buffer is empty, or what is left in it must wait."""
        waits = False
        while self._buffer and not waits:
            waits = self._read_call() if self.state is State.CALL else self._read_text(at_end)
        if at_end and self._buffer and self.state is not State.CALL:
            # A tag that a real marker began and the end cut off is markup, not text.
            if not self._is_real(self._buffer):
                self._say(self._buffer)
            self._buffer = ""

    def _read_text(self, at_end: bool) -> bool:
        if self._skip and self._skipped(at_end):
            return True
        found = self._pattern.search(self._buffer)
        if found is None:
            self._say(self._buffer)
            self._buffer = ""
            return False
        if found.start():
            self._say(self._buffer[: found.start()])
            self._buffer = self._buffer[found.start() :]
        if found.group(1) is None:
            return True
        form = found.group(1)
        forms = self._forms
        if form in forms.think_close:
            return self._on_think_close(form)
        if form in forms.think_open:
            return self._on_think_open(form)
        if form in forms.block_close:
            self._drop(form)
            self._in_block = False
            self._said, self._blanks, self._pattern = False, "", self._pattern_now()
            return False
        return self._on_call_begin(form)

    def _skipped(self, at_end: bool) -> bool:
        """Drop the blanks that belong to a marker. True: more of them may come."""
        while self._skip and self._buffer and self._buffer[0] == self._skip[0]:
            self._skip, self._buffer = self._skip[1:], self._buffer[1:]
        if self._buffer:
            self._skip = ""
        return not self._buffer

    def _on_think_close(self, form: str) -> bool:
        if self.state is State.THINKING:
            self._flush_blanks()
            self._enter(State.CONTENT)
        elif self._said and not self._is_real(form):
            return self._as_text(form)
        self._drop(form)
        self._skip = self._dialect.after_think_close
        return False

    def _on_think_open(self, form: str) -> bool:
        if self._said and not (self._is_real(form) and self.state is State.CONTENT):
            return self._as_text(form)
        self._drop(form)
        if self.state is State.CONTENT:
            self._enter(State.THINKING)
        self._blanks = ""
        self._skip = self._dialect.after_think_open
        return False

    def _on_call_begin(self, form: str) -> bool:
        """A block or, within one, a call: it counts once a call's name is read."""
        opener = "" if form in self._forms.call_open else form
        name = self._call_name(self._buffer[len(opener) :])
        if isinstance(name, _Wait):
            return True
        if name is None or not self._may_call(name.name, form):
            return self._as_text(form)
        self._buffer = self._buffer[len(opener) + name.num_chars :]
        if self.state is State.THINKING:
            self._flush_blanks()
        self._blanks = ""
        if opener:
            self._block_is_real = self._is_real(opener)
        self._start_call(name.name, is_real=self._block_is_real or name.is_real)
        return False

    def _call_name(self, text: str) -> _Name | _Wait | None:
        """The opening tag of a call at the beginning of ``text``, blanks aside."""
        tag = text.lstrip()
        for form in self._forms.call_open:
            if tag.startswith(form):
                end = tag.find(self._dialect.call_open_end, len(form))
                if end < 0:
                    return _Wait() if len(tag) < MAX_TAG_CHARS else None
                shown = self._dialect.spellings.text(tag[len(form) : end])
                num_chars = len(text) - len(tag) + end + len(self._dialect.call_open_end)
                return _Name(shown, num_chars, self._is_real(form))
        may_come = could_become(tag, self._forms.call_open) and len(text) < MAX_TAG_CHARS
        return _Wait() if may_come else None

    def _may_call(self, name: str, form: str) -> bool:
        """While thinking, spelled markup of an unknown tool is talk about calls."""
        assert self._tools is not None
        return self.state is not State.THINKING or self._is_real(form) or name in self._tools

    def _start_call(self, name: str, *, is_real: bool) -> None:
        assert self._tools is not None
        self._in_block = True
        self.state = State.CALL
        self._events.append(CallStarted(self._num_calls, name, self._new_id()))
        self._reader = self._dialect.read_arguments(
            CallContext(self._dialect, self._tools, name, is_real)
        )
        self._arguments_text(self._reader.push(""))

    def _read_call(self) -> bool:
        assert self._reader is not None
        text, self._buffer = self._buffer, ""
        self._arguments_text(self._reader.push(text))
        if self._reader.done:
            self._buffer = self._reader.rest
            self._end_call()
        return False

    def _arguments_text(self, text: str) -> None:
        if text:
            self._arguments.append(text)
            self._events.append(ArgumentsDelta(self._num_calls, text))

    def _end_call(self) -> None:
        reader, self._reader = self._reader, None
        assert reader is not None
        self._events.append(
            CallFinished(
                self._num_calls,
                "".join(self._arguments),
                incomplete=not reader.done,
                problems=tuple(reader.problems),
            )
        )
        self._arguments.clear()
        self._num_calls += 1
        self._enter(State.CONTENT)
        lines = map(str.strip, "".join(reader.stray).split("\n"))
        if stray := "\n".join(filter(None, lines)):
            self._say(stray)
            self._said = False  # blanks after it belong to the block

    def _enter(self, state: State) -> None:
        self.state = state
        self._said = False
        self._pattern = self._pattern_now()

    def _say(self, text: str) -> None:
        """Text of the present state. Blanks wait until something follows them."""
        if not self._said:
            if not text.strip():
                self._blanks += text
                return
            self._said = True
            text, self._blanks = self._blanks + text, ""
        text = self._dialect.spellings.text(text)
        kind = ReasoningDelta if self.state is State.THINKING else ContentDelta
        self._events.append(kind(text))

    def _flush_blanks(self) -> None:
        """What was held back turned out to be all; beside calls it is the template's."""
        blanks, self._blanks = self._blanks, ""
        if blanks and not (self._in_block or self._num_calls):
            self._said = True
            self._say(blanks)

    def _as_text(self, form: str) -> bool:
        """A marker that is none here."""
        self._buffer = self._buffer[len(form) :]
        self._say(form)
        return False

    def _drop(self, form: str) -> None:
        self._buffer = self._buffer[len(form) :]

    def _is_real(self, form: str) -> bool:
        return self._dialect.is_real(form.lstrip())

    def _pattern_now(self) -> Pattern:
        return self._forms.pattern(self.state, self._in_block, self._tools is not None)


class _Name:
    """An opening tag of a call: the tool, and how long the tag is."""

    def __init__(self, name: str, num_chars: int, is_real: bool) -> None:
        self.name = name
        self.num_chars = num_chars
        self.is_real = is_real


class _Wait:
    """More text will tell."""


class _Forms:
    """How a dialect's markers may look, with the blanks that belong to them; patterns by state."""

    _made: Final[dict[str, _Forms]] = {}

    def __init__(self, dialect: Dialect) -> None:
        think_close = dialect.forms(dialect.think_close)
        blocks = dialect.forms(dialect.block_open)
        self.think_open = frozenset(dialect.forms(dialect.think_open))
        self.think_close = frozenset(_with_blanks(dialect.before_think_close, think_close))
        self.block_open = frozenset(_with_blanks(dialect.before_block, blocks))
        self.block_close = frozenset(dialect.forms(dialect.block_close))
        self.call_open = dialect.forms(dialect.call_open)
        thinking = frozenset() if dialect.thinking_is_content else self.think_open
        closers = frozenset() if dialect.thinking_is_content else self.think_close
        self._patterns: dict[tuple[State, bool, bool], Pattern] = {}
        for state in State:
            for in_block in (False, True):
                for calls in (False, True):
                    literals = set(thinking | closers)
                    if calls:
                        literals |= self.block_open
                        if in_block:
                            literals |= {*self.block_close, *self.call_open}
                    self._patterns[state, in_block, calls] = search_pattern(literals)

    @classmethod
    def of(cls, dialect: Dialect) -> _Forms:
        if dialect.name not in cls._made:
            cls._made[dialect.name] = cls(dialect)
        return cls._made[dialect.name]

    def pattern(self, state: State, in_block: bool, calls: bool) -> Pattern:
        return self._patterns[state, in_block, calls]


def _with_blanks(blanks: str, forms: Sequence[str]) -> list[str]:
    """``forms`` with and without the blanks that the template writes before them."""
    return [*forms, *(blanks + form for form in forms)]
