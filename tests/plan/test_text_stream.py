"""Streaming text: whatever the pieces, the whole is the same as decoding everything at once."""

from __future__ import annotations

import itertools

import tokenizers
import tokenizers.decoders
import tokenizers.models
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import SamplingParams
from mserve.text import Answer, ByteLevelTokenizer, Detokenizer, StopStrings

SPECIAL, ADDED = 300, 301


def make_backend() -> tokenizers.Tokenizer:
    """Bytes 0 to 255, some tokens of several bytes that end inside characters, two added ones."""
    alphabet = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    rest = [b for b in range(256) if b not in alphabet.values()]
    alphabet |= {chr(256 + i): b for i, b in enumerate(rest)}
    char_of = {b: char for char, b in alphabet.items()}
    pieces = [b"he", b"llo", b" wor", "é".encode(), "€".encode()[:2], "€".encode()[2:] + b"x"]
    pieces += ["🙂".encode()[:3], "🙂".encode()[3:] + "🙂".encode()[:1], b"\xff\xfe", b"\n\n"]
    vocab = dict(alphabet)
    for i, piece in enumerate(pieces):
        vocab["".join(char_of[b] for b in piece)] = 256 + i
    vocab |= {f"filler{i}": i for i in range(len(vocab), SPECIAL)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken("<|end of text|>", special=True)])
    backend.add_tokens([tokenizers.AddedToken("<a b>", special=False)])
    assert backend.token_to_id("<a b>") == ADDED
    return backend


BACKEND = make_backend()
TOKENIZER = ByteLevelTokenizer(BACKEND)
TOKEN_IDS = st.lists(
    st.one_of(st.integers(0, 265), st.integers(250, 265), st.sampled_from([SPECIAL, ADDED, 999])),
    max_size=40,
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(TOKEN_IDS, st.booleans())
def test_pieces_equal_the_whole(token_ids: list[int], skip: bool) -> None:
    detokenizer = Detokenizer(TOKENIZER, skip_special_tokens=skip)
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    whole = "".join(pieces) + detokenizer.finish()
    assert whole == BACKEND.decode(token_ids, skip_special_tokens=skip)
    assert whole == TOKENIZER.decode(token_ids, skip_special_tokens=skip)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_characters_are_never_shown_in_part(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    shown = ""
    data = text.encode()
    for count, byte in enumerate(data, start=1):
        shown += detokenizer.push(byte)
        assert shown == data[:count].decode(errors="ignore")


def test_an_unfinished_character_becomes_one_replacement() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(b) for b in "€".encode()[:2]] == ["", ""]
    assert detokenizer.finish() == "\N{REPLACEMENT CHARACTER}"


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """By definition: the first prefix of the text that ends with a stop string; the longest."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return end, stop
    return None


def held_back(text: str, stops: list[str]) -> str:
    """The longest end of the text that a stop string might still begin with."""
    for start in range(len(text) + 1):
        if any(len(text) - start < len(stop) and stop.startswith(text[start:]) for stop in stops):
            return text[start:]
    return ""


LETTERS = st.text(alphabet="ab", min_size=1, max_size=5)


@settings(derandomize=True, max_examples=800, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", max_size=4), max_size=8),
    st.lists(LETTERS, min_size=1, max_size=3),
    st.booleans(),
)
def test_stop_strings_against_their_definition(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    scanner = StopStrings(stops, include=include)
    text, shown = "", ""
    for piece in pieces:
        text += piece
        scan = scanner.push(piece)
        shown += scan.text
        found = first_stop(text, stops)
        if found is not None:
            end, stop = found
            assert scan.stop == stop
            assert shown == (text[:end] if include else text[: end - len(stop)])
            return
        assert scan.stop is None
        assert shown + held_back(text, stops) == text
    assert shown + scanner.finish() == text


def answer_of(
    token_ids: list[int], sampling: SamplingParams, stop_token_id: int | None = None
) -> tuple[str, int, str | None]:
    """Text, counted tokens and stop string, fed one token at a time."""
    answer, text, count = Answer(TOKENIZER, sampling), "", 0
    for number, token_id in enumerate(token_ids, start=1):
        last = number == len(token_ids)
        piece = answer.push([token_id], last=last, stop_token_id=stop_token_id if last else None)
        text += piece.content
        count += piece.num_tokens
        assert len(piece.texts) == piece.num_tokens
        if piece.stop is not None:
            return text, count, piece.stop
    return text, count, None


def test_a_stop_string_across_tokens_ends_the_answer() -> None:
    sampling = SamplingParams(stop=("lo w",))
    assert answer_of([256, 257, 258, 33], sampling) == ("hel", 3, "lo w")


def test_min_tokens_lets_an_early_stop_string_pass() -> None:
    sampling = SamplingParams(stop=("a",), min_tokens=3)
    assert answer_of(list(b"abacad"), sampling) == ("ab", 3, "a")
    assert answer_of(list(b"abbacad"), sampling) == ("abb", 4, "a")


def test_the_stop_token_is_hidden_unless_stops_are_shown() -> None:
    ids = [*b"hi", ord("!")]
    hidden = SamplingParams(stop_token_ids=(ord("!"),))
    shown = SamplingParams(stop_token_ids=(ord("!"),), include_stop_str_in_output=True)
    assert answer_of(ids, hidden, stop_token_id=ord("!")) == ("hi", 3, None)
    assert answer_of(ids, shown, stop_token_id=ord("!")) == ("hi!", 3, None)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(b"ab\xe2\x82\xac"), min_size=1, max_size=20),
    st.lists(st.integers(0, 20), max_size=4),
    st.lists(LETTERS, max_size=2),
    st.integers(0, 4),
)
def test_how_tokens_are_batched_does_not_matter(
    token_ids: list[int], cuts: list[int], stops: list[str], min_tokens: int
) -> None:
    sampling = SamplingParams(stop=tuple(stops), min_tokens=min_tokens)
    one_by_one = answer_of(token_ids, sampling)
    answer, text, count, stop = Answer(TOKENIZER, sampling), "", 0, None
    borders = sorted({0, len(token_ids), *(cut for cut in cuts if cut < len(token_ids))})
    for start, end in itertools.pairwise(borders):
        piece = answer.push(token_ids[start:end], last=end == len(token_ids))
        text, count, stop = text + piece.content, count + piece.num_tokens, piece.stop
        if stop is not None:
            break
    assert (text, count, stop) == one_by_one
