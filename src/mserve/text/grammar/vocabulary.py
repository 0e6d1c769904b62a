"""A checkpoint's tokens, as grammars are matched against them."""

from __future__ import annotations

from collections.abc import Sequence

from mserve.matcher import VocabularyFacts
from mserve.text.dialects import Dialect, marker_ids
from mserve.text.tokenizer import Tokenizer


def vocabulary_facts(
    tokenizer: Tokenizer, dialect: Dialect, eos_ids: Sequence[int]
) -> VocabularyFacts | None:
    """Markers count as control tokens even where the tokenizer shows them as text. ``None``:
    there is no tokenizer, or nothing that ends a text, so grammars cannot be followed."""
    if not tokenizer.vocab_size or not eos_ids:
        return None
    control_ids = {*tokenizer.special_ids, *marker_ids(dialect, tokenizer), *eos_ids}
    return VocabularyFacts(
        tokens=[tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
        control_ids=tuple(sorted(control_ids)),
        eos_ids=tuple(eos_ids),
    )
