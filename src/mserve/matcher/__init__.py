"""Which tokens may come next under a grammar. The only folder that knows the grammar library.

Knows grammars, token bytes and bit masks. Does not know JSON Schema, wire forms (``text.grammar``
writes the grammars) or logits (``sampler`` applies the masks). Torch-free, so that the front end
can try a grammar exactly as the engine will follow it.
"""

from mserve.matcher.follower import MAX_ROLLBACK, AllBut, Choice, Follower, Only
from mserve.matcher.matcher import Matcher
from mserve.matcher.notation import (
    control_token,
    escaped,
    from_ebnf,
    grammar_text,
    inline_schema,
    literal,
    regex_body,
)
from mserve.matcher.vocabulary import Vocabulary, VocabularyFacts

__all__ = [
    "MAX_ROLLBACK",
    "AllBut",
    "Choice",
    "Follower",
    "Matcher",
    "Only",
    "Vocabulary",
    "VocabularyFacts",
    "control_token",
    "escaped",
    "from_ebnf",
    "grammar_text",
    "inline_schema",
    "literal",
    "regex_body",
]
