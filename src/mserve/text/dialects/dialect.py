"""What tells one model's markup from another's, as data.

    thinking    think_open  ...  think_close
    a block     block_open  call+  block_close          one or several calls
    a call      call_open NAME call_open_end  arguments  call_close

``mark`` stands before every tag of a block and within it (M3's namespace token; M2 has none).
``arguments`` is the one part that data cannot say: ``read_arguments`` makes its reader. Knows
spellings. Does not know which state is when (``machine``) or how a grammar is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cached_property
from typing import Literal, Protocol

import msgspec

from mserve.text.dialects.markers import Spellings
from mserve.text.dialects.schema import Tools

ThinkingMode = Literal["enabled", "disabled", "adaptive"]


class Start(Enum):
    """Where the rendered prompt ends and the model goes on: a fact of the template and the
    thinking mode, never looked for in the prompt."""

    THINKING = "the prompt has opened thinking"
    CONTENT = "the prompt has closed thinking, or there is none"
    EITHER = "the model decides with its first token"


class ArgumentsReader(Protocol):
    """Reads one call from the end of its opening tag to the end of its closing one."""

    done: bool
    rest: str  # what followed the call's end
    stray: list[str]  # text with no place in the arguments; shown as content after the call
    problems: list[str]

    def push(self, text: str) -> str:
        """More text, real markers as their characters; returns more JSON."""

    def finish(self) -> str:
        """The answer ended: close everything. ``done`` if the call was whole after all."""


class CallContext(msgspec.Struct, frozen=True):
    """What a reader of arguments needs to know of its call."""

    dialect: Dialect
    tools: Tools
    tool: str
    is_real: bool  # the block was opened by a real marker, so that only real ones can end it


class Dialect(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """See the module. All fields are spellings unless they say otherwise."""

    name: str
    family: Literal["m2", "m3"]
    think_open: str
    think_close: str
    mark: str
    block_open: str
    block_close: str
    call_open: str
    call_open_end: str
    call_close: str
    value_form: Literal["parameters", "elements"]
    markers: tuple[str, ...]
    """Tokens of the vocabulary that can be real markers."""
    shown_tokens: tuple[str, ...] = ()
    """Further tokens that are markup, whose text is read even where special tokens are hidden."""
    after_think_open: str = ""
    before_think_close: str = ""
    after_think_close: str = ""
    before_block: str = ""
    """Blanks that the template writes beside the markers; they belong to neither text."""
    starts: Mapping[ThinkingMode, Start]
    """By mode; a mode that is missing is one that the model cannot be put in."""
    default_mode: ThinkingMode
    mode_variable: str | None
    """The template's variable for the mode, if it reads one."""
    thinking_is_content: bool = False
    """Thinking and its markers stay in the content (for clients of old recipes)."""
    read_arguments: Callable[[CallContext], ArgumentsReader]

    @cached_property
    def spellings(self) -> Spellings:
        return Spellings(self.markers)

    def forms(self, tag: str) -> tuple[str, ...]:
        """All that ``tag`` may look like in the text that readers see."""
        if tag in self.markers:
            return self.spellings.both(tag)
        if not self.mark:
            return (tag,)
        return tuple(mark + tag for mark in self.spellings.both(self.mark))

    def is_real(self, form: str) -> bool:
        """Whether it begins with a real marker."""
        return "\ud800" <= form[:1] <= "\udfff"

    def tag(self, tag: str) -> str:
        """``tag`` as it is written."""
        return tag if tag in self.markers else self.mark + tag

    def __repr__(self) -> str:
        return f"Dialect({self.name})"
