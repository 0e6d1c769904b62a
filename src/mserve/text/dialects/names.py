"""Dialects by the names that users type, by checkpoint, and their tokens in a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from mserve.core import RequestError, SetupError
from mserve.text.dialects.dialect import Dialect
from mserve.text.dialects.minimax_m2 import M2
from mserve.text.dialects.minimax_m3 import M3
from mserve.text.tokenizer import Tokenizer

M2_APPEND_THINK: Final = msgspec.structs.replace(
    M2, name="minimax_m2_append_think", thinking_is_content=True
)
"""Thinking stays in the content with its markers, for clients of recipes that chose so."""

DIALECTS: Final = {dialect.name: dialect for dialect in (M2, M2_APPEND_THINK, M3)}

_OTHER_NAMES: Final = {"minimax_append_think": M2_APPEND_THINK}  # SGLang's

_OF_FAMILY: Final = {"m2": M2, "m3": M3}


def by_name(name: str) -> Dialect:
    """By the names in ``DIALECTS``, with dashes too, or another server's name. Raises
    ``SetupError`` for any other."""
    found = {**DIALECTS, **_OTHER_NAMES}.get(name.replace("-", "_"))
    if found is None:
        raise SetupError(
            f'no parser is called "{name}"', hint=f"choose one of {', '.join(DIALECTS)}"
        )
    return found


def of_family(family: Literal["m2", "m3"]) -> Dialect:
    """The dialect of a checkpoint, by ``ModelSpec.family``."""
    return _OF_FAMILY[family]


def marker_ids(dialect: Dialect, tokenizer: Tokenizer) -> dict[int, str]:
    """Markers that are single tokens of this vocabulary, by id. Empty without a tokenizer."""
    return dict(_single_tokens(dialect, tokenizer))


def _single_tokens(dialect: Dialect, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    for marker in (*dialect.markers, *dialect.shown_tokens):
        try:
            ids = tokenizer.encode(marker, add_special_tokens=False)
        except RequestError:
            return
        if len(ids) == 1:
            yield ids[0], marker
