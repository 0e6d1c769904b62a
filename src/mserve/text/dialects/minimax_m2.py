"""MiniMax-M2: arguments are named parameters whose values stand verbatim.

    <parameter name="k">v</parameter>

Strings are raw, everything else is JSON. Nothing is escaped, so a value that holds the text of a
closing tag can only be told from its end by what follows:

- in a block that a real marker opened, only a real one closes it, whatever the text spells;
- ``</parameter>`` ends a value if then comes a parameter that the schema admits and that has not
  been given yet, or ``</invoke>`` and after it the block's end or another known tool's call.

Everything else is part of the value, and the call says so in its problems. JSON needs no rule of
its own: in its strings the quotes of a next parameter would be escaped.
"""

from __future__ import annotations

from enum import Enum

from mserve.text.dialects.dialect import CallContext, Dialect, Start
from mserve.text.dialects.json_text import JsonWriter
from mserve.text.dialects.markers import MAX_TAG_CHARS, could_become, search_pattern
from mserve.text.dialects.values import Leaf, told

_OPEN, _OPEN_END, _CLOSE = '<parameter name="', '">', "</parameter>"
_MAX_BLANKS = 256


class _Verdict(Enum):
    """Whether a closing tag is one."""

    CLOSES = "it is"
    TEXT = "it is text of the value"
    UNKNOWN = "what follows will tell"


class ParameterReader:
    """Reads the parameters of one call."""

    def __init__(self, call: CallContext) -> None:
        self.done = False
        self.rest = ""
        self.stray: list[str] = []
        self.problems: list[str] = []
        self._call = call
        dialect = call.dialect
        forms = dialect.forms(dialect.block_close)
        self._block_closes = forms[:1] if call.is_real else forms
        self._real_close = forms[0]
        self._between = _BETWEEN_REAL if call.is_real else _BETWEEN_ANY
        self._view = call.tools.arguments_of(call.tool)
        self._seen: set[str] = set()
        self._name = ""
        self._in_value = False
        self._leaf: Leaf | None = None  # None: no value is open, or one that has no place
        self._is_telling, self._told = False, ""  # the value tells a union apart; its text
        self._buffer = ""
        self._writer = JsonWriter()
        self._writer.open_object()

    def push(self, text: str) -> str:
        if self._buffer:
            self._buffer += text
        elif self._in_value and _WITHIN.search(text) is None:
            self._value(text)
            return self._writer.take()
        else:
            self._buffer = text
        self._read(at_end=False)
        return self._writer.take()

    def finish(self) -> str:
        self._read(at_end=True)
        if not self.done:
            if self._in_value:
                if self._leaf is None or self._leaf.is_string:
                    self._value(self._buffer)  # looked like a tag, and the answer ended
                self._end_value()
            self._writer.close()
        return self._writer.take()

    def _read(self, *, at_end: bool) -> None:
        waits = False
        while self._buffer and not waits and not self.done:
            waits = self._read_value(at_end) if self._in_value else self._read_between()
        if self.done:
            self._writer.close()
            self.rest, self._buffer = self._buffer, ""

    def _read_between(self) -> bool:
        """Up to the next parameter or the call's end. True: more text is needed."""
        found = self._between.search(self._buffer)
        text = self._buffer if found is None else self._buffer[: found.start()]
        self.stray.append(self._shown(text))
        self._buffer = self._buffer[len(text) :]
        if found is None:
            return False
        tag = found.group(1)
        if tag is None:
            return True
        if tag == _OPEN:
            return self._open_parameter()
        if tag == self._call.dialect.call_close:
            self._buffer = self._buffer[len(tag) :]
        else:
            self.problems.append("the call is not closed")
        self.done = True
        return False

    def _open_parameter(self) -> bool:
        end = self._buffer.find(_OPEN_END, len(_OPEN))
        if end < 0:
            if len(self._buffer) < MAX_TAG_CHARS:
                return True
            self.stray.append(self._shown(self._buffer))
            self._buffer = ""
            return False
        self._name = self._shown(self._buffer[len(_OPEN) : end])
        self._buffer = self._buffer[end + len(_OPEN_END) :]
        self._in_value = True
        if self._name in self._seen:
            self._note(f"{self._name} is repeated")
            self._leaf = None
        else:
            self._seen.add(self._name)
            self._writer.key(self._name)
            self._leaf = Leaf(self._view.member(self._name), self._writer)
            self._is_telling, self._told = self._view.tells_apart(self._name), ""
        return False

    def _read_value(self, at_end: bool) -> bool:
        """Up to what may be the value's end. True: more text is needed."""
        found = _WITHIN.search(self._buffer)
        text = self._buffer if found is None else self._buffer[: found.start()]
        self._value(text)
        self._buffer = self._buffer[len(text) :]
        if found is None:
            return False
        tag = found.group(1)
        if tag is None:
            return True
        verdict = self._judge(tag, self._buffer[len(tag) :].lstrip(), at_end)
        if verdict is _Verdict.UNKNOWN:
            if len(self._buffer) < MAX_TAG_CHARS:
                return True
            verdict = _Verdict.TEXT
        if verdict is _Verdict.CLOSES:
            self._end_value()
            if tag == _CLOSE:
                self._buffer = self._buffer[len(tag) :]
            else:
                self._note(f"{self._name} is not closed")
        else:
            self._note(f"{self._name} holds {self._shown(tag)}")
            self._value(tag)
            self._buffer = self._buffer[len(tag) :]
        return False

    def _judge(self, tag: str, after: str, at_end: bool) -> _Verdict:
        """What ``tag`` is, from the text ``after`` it."""
        dialect = self._call.dialect
        if tag == self._real_close:
            return _Verdict.CLOSES
        if tag == _CLOSE:
            verdict = self._judge_follower(after)
        elif tag == dialect.call_close:
            verdict = self._after_call(after)
        else:
            return _Verdict.TEXT
        if verdict is _Verdict.UNKNOWN and at_end:
            return _Verdict.CLOSES if tag == _CLOSE else _Verdict.TEXT
        return verdict

    def _judge_follower(self, after: str) -> _Verdict:
        dialect = self._call.dialect
        if after.startswith(_OPEN):
            return self._judge_name(after)
        if after.startswith(dialect.call_close):
            return self._after_call(after[len(dialect.call_close) :].lstrip())
        if after.startswith(self._block_closes):
            return _Verdict.CLOSES
        if after.startswith(dialect.call_open):
            return self._judge_tool(after)
        followers = (_OPEN, dialect.call_close, dialect.call_open, *self._block_closes)
        return _Verdict.UNKNOWN if could_become(after, followers) else _Verdict.TEXT

    def _judge_name(self, after: str) -> _Verdict:
        end = after.find(_OPEN_END)
        if end < 0:
            return _Verdict.UNKNOWN
        name = self._shown(after[len(_OPEN) : end])
        if name not in self._seen and self._view.admits(name):
            return _Verdict.CLOSES
        holds_text = self._leaf is not None and self._leaf.is_string
        return _Verdict.TEXT if holds_text else _Verdict.CLOSES

    def _judge_tool(self, after: str) -> _Verdict:
        dialect = self._call.dialect
        end = after.find(dialect.call_open_end)
        if end < 0:
            return _Verdict.UNKNOWN
        name = after[len(dialect.call_open) : end]
        tools = self._call.tools
        return _Verdict.CLOSES if name in tools or not len(tools) else _Verdict.TEXT

    def _after_call(self, after: str) -> _Verdict:
        dialect = self._call.dialect
        if after.startswith(self._block_closes):
            return _Verdict.CLOSES
        if after.startswith(dialect.call_open):
            return self._judge_tool(after)
        followers = (dialect.call_open, *self._block_closes)
        return _Verdict.UNKNOWN if could_become(after, followers) else _Verdict.TEXT

    def _value(self, text: str) -> None:
        if not text:
            return
        text = self._shown(text)
        if self._leaf is None:
            self.stray.append(text)
            return
        self._leaf.push(text)
        if self._is_telling:
            self._told += text

    def _end_value(self) -> None:
        self._in_value = False
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return
        if not leaf.finish():
            self._note(f"{self._name} does not fit its schema")
        if leaf.rest:
            self.stray.append(leaf.rest)
        if self._is_telling:
            self._view = told(self._view, self._name, self._told)

    def _shown(self, text: str) -> str:
        return self._call.dialect.spellings.text(text)

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


M2 = Dialect(
    name="minimax_m2",
    family="m2",
    think_open="<think>",
    think_close="</think>",
    mark="",
    block_open="<minimax:tool_call>",
    block_close="</minimax:tool_call>",
    call_open='<invoke name="',
    call_open_end='">',
    call_close="</invoke>",
    value_form="parameters",
    markers=("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"),
    after_think_open="\n",
    before_think_close="\n",
    after_think_close="\n\n",
    before_block="\n",
    starts={"enabled": Start.THINKING},
    default_mode="enabled",
    mode_variable=None,
    read_arguments=ParameterReader,
)

_REAL_CLOSE, _SPELLED_CLOSE = M2.forms(M2.block_close)
_TAGS_BETWEEN = (_OPEN, M2.call_close, M2.call_open, _REAL_CLOSE)
_TAGS_WITHIN = (_CLOSE, M2.call_close, _REAL_CLOSE)
_BETWEEN_REAL = search_pattern(_TAGS_BETWEEN)
_BETWEEN_ANY = search_pattern((*_TAGS_BETWEEN, _SPELLED_CLOSE))
_WITHIN = search_pattern(_TAGS_WITHIN)  # a spelled end of the block alone ends no value
