"""What tests of grammars share: a small vocabulary, writers that know only masks, schemas."""

import functools
import random

import numpy as np
import tokenizers
from hypothesis import strategies as st

from mserve.matcher import Follower, Only, Vocabulary
from mserve.text import ByteLevelTokenizer, Detokenizer
from mserve.text.dialects import DialectParser, Tools, marker_ids, of_family
from mserve.text.grammar import vocabulary_facts
from mserve.toy.tokenizer import tokenizer_json

VOCAB_SIZE = 600
END = "[e~["


class Family:
    """A model family's tokens, in a vocabulary small enough to look at every id."""

    def __init__(self, name):
        self.dialect = of_family(name)
        backend = tokenizers.Tokenizer.from_str(tokenizer_json(name, VOCAB_SIZE))
        self.tokenizer = ByteLevelTokenizer(backend)
        self.eos_id = self.one_token(END)
        self.marker_ids = marker_ids(self.dialect, self.tokenizer)
        self.facts = vocabulary_facts(self.tokenizer, self.dialect, [self.eos_id])
        self.vocabulary = Vocabulary(self.facts, self.encode)
        self.control_ids = frozenset(self.facts.control_ids)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def one_token(self, text):
        (token_id,) = self.encode(text)
        return token_id

    def text(self, token_ids):
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def events(self, token_ids, start, tools=None):
        """What the front end makes of an answer, without its end of text."""
        known = None if tools is None else Tools({t.name: t.parameters for t in tools})
        parser = DialectParser(self.dialect, start, known, marker_ids=self.marker_ids)
        found = []
        detokenizer = Detokenizer(self.tokenizer, skip_special_tokens=False)
        for token_id in token_ids:
            if token_id != self.eos_id:
                found += parser.push(token_id, detokenizer.push(token_id))
        return [*found, *parser.finish()]


@functools.cache
def family(name):
    return Family(name)


def allowed_ids(choice):
    """As a list, in order."""
    if isinstance(choice, Only):
        bits = np.unpackbits(choice.mask.view(np.uint8), bitorder="little")
        return np.flatnonzero(bits[:VOCAB_SIZE]).tolist()
    return sorted(set(range(VOCAB_SIZE)) - set(choice.token_ids.tolist()))


class Writer:
    """Writes an answer of which it knows nothing but the mask: at random for ``patience`` tokens,
    then whatever may bring it to an end."""

    NARROW = (
        b"}",
        b"]",
        b"</",
        b"<",
        b",",
        b"1",
        b"true",
        b"null",
        b"false",
        b'"',
        b"{",
        b"[",
        b":",
    )
    CLOSER = b"</parameter>"

    def __init__(self, who, seed, patience=40):
        self._who = who
        self._random = random.Random(seed)
        self._patience = patience
        self._bytes = b""

    def write(self, constraint, most=2000):
        """Token ids up to and with the end of text; fails if there is none."""
        follower = Follower(constraint, self._who.vocabulary)
        token_ids = []
        for number in range(most):
            allowed = allowed_ids(follower.choice())
            token_id = self._chosen(allowed, hurried=number >= self._patience)
            follower.accept(token_id)
            token_ids.append(token_id)
            self._bytes += self._who.tokenizer.token_bytes(token_id)
            if token_id == self._who.eos_id:
                return token_ids
        raise AssertionError(f"no end: {self._bytes[-300:]!r}")

    def _chosen(self, allowed, hurried):
        control = [i for i in allowed if i in self._who.control_ids]
        plain = [i for i in allowed if i not in self._who.control_ids]
        if control and (not plain or hurried or self._random.random() < 0.4):
            if self._who.eos_id in control:
                return self._who.eos_id
            markers = [i for i in control if i in self._who.marker_ids]
            return self._random.choice(markers if markers and hurried else control)
        if hurried or self._random.random() < 0.3:
            by_bytes = {self._who.tokenizer.token_bytes(i): i for i in plain}
            for wanted in self._enders(len(plain)):
                if wanted in by_bytes:
                    return by_bytes[wanted]
        return self._random.choice(plain)

    def _enders(self, num_allowed):
        """What may end a value: in the middle of text a quote or a tag, else what closes most."""
        closing = [
            self.CLOSER[length : length + 1]
            for length in range(len(self.CLOSER) - 1, 0, -1)
            if self._bytes.endswith(self.CLOSER[:length])
        ]
        in_text = [b'"', b"<", b"b", b"0"]
        self._random.shuffle(in_text)
        return [*closing, *(in_text if num_allowed > VOCAB_SIZE // 4 else self.NARROW)]


_LETTERS = st.text("ab<1 /né", min_size=0, max_size=4)
_KEYS = st.sampled_from(["a", "b", "city", "item", "a b", "ö", "x>y"])

_SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 4)}),
    st.just({"type": "string", "pattern": "^[a-c]{2}$"}),
    st.just({"type": "string", "pattern": "b[0-9]"}),
    st.just({"type": "integer"}),
    st.fixed_dictionaries({"type": st.just("integer"), "minimum": st.integers(-9, 9)}),
    st.just({"type": "number", "maximum": 10}),
    st.just({"type": "boolean"}),
    st.fixed_dictionaries(
        {
            "enum": st.lists(
                st.one_of(_LETTERS, st.integers(-3, 3), st.none()), min_size=1, max_size=3
            )
        }
    ),
    st.fixed_dictionaries({"const": st.one_of(_LETTERS, st.booleans(), st.integers(0, 5))}),
    st.just({"type": ["string", "null"]}),
    st.just({"type": ["integer", "string"]}),
    st.just({}),
)


def _objects(values):
    def some_required(properties):
        names = list(properties)
        chosen = st.lists(st.sampled_from(names), unique=True) if names else st.just([])
        return st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(properties),
                "required": chosen,
                "additionalProperties": st.just(False),
            }
        )

    return st.dictionaries(_KEYS, values, max_size=3).flatmap(some_required)


def _containers(values):
    return st.one_of(
        _objects(values),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": values},
            optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 3)},
        ),
        st.fixed_dictionaries({"type": st.just("object"), "additionalProperties": values}),
        st.lists(values, min_size=2, max_size=2).map(lambda some: {"anyOf": some}),
        values.map(lambda value: {"anyOf": [value, {"type": "null"}]}),
    )


SCHEMAS = st.recursive(_SCALARS, _containers, max_leaves=5)
ARGUMENTS = _objects(SCHEMAS)
