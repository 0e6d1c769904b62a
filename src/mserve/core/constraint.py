"""What an answer must look like, as the engine takes it: a grammar, and where it begins to hold.

    | free text, to its marker | more free text, to its marker | under the grammar, to the end |
      thinking                   content before a tool call      JSON, a regex, a call

Knows shapes only. The grammar's language is that of ``matcher``; who writes it is ``text``.
"""

from __future__ import annotations

import msgspec

MAX_GRAMMAR_CHARS = 1 << 20


class FreeText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Anything, up to and with the marker ``ends_with``: one token, or spelled by several."""

    ends_with: str
    begins_with: str = ""
    """If set, the model decides with its first token whether this part is there: this marker
    begins it, ``ends_with`` is the whole of it, and any other token belongs to what follows."""
    may_end: bool = False  # the answer may be over before the marker has come
    forbidden_ids: tuple[int, ...] = ()


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """After the parts ``after``, in order, the answer follows ``grammar`` to its end; it can end
    only where the grammar does."""

    grammar: str
    after: tuple[FreeText, ...] = ()
