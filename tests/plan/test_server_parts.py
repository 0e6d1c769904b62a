"""Parts of the server that need neither HTTP nor an engine, by their properties."""

from __future__ import annotations

import base64
import zlib
from array import array

import tokenizers
import tokenizers.decoders
import tokenizers.models
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.server.near_miss import NearMisses, num_shared
from mserve.server.repetition import RepetitionWatch, shortest_period
from mserve.server.replay import is_replayed_exactly, packed, signature_of, unpacked
from mserve.text import ByteLevelTokenizer

TEXTS = st.text(max_size=50)
FEW = settings(derandomize=True, max_examples=200, deadline=None)


@FEW
@given(TEXTS, TEXTS)
def test_signatures_tell_texts_apart(one: str, other: str) -> None:
    assert is_replayed_exactly(other, signature_of(one)) is (one == other)
    assert is_replayed_exactly(one, "EqQBCg" + one) is None


@FEW
@given(TEXTS, st.integers(0, 60))
def test_packed_text_comes_back_whole_or_not_at_all(text: str, cut: int) -> None:
    content = packed(text)
    assert content.isascii()
    assert unpacked(content) == text
    assert unpacked(content[:cut]) in (None, text)
    assert unpacked("gAAAA" + content) is None


def test_a_packed_bomb_is_not_unpacked() -> None:
    assert unpacked(packed("a" * (33 << 20))) is None


def test_packed_text_that_is_no_text_is_not_unpacked() -> None:
    half_a_pair = "a\ud800b".encode("utf-8", "surrogatepass")
    prefix = packed("")[: packed("").index(".") + 1]
    assert unpacked(prefix + base64.b64encode(zlib.compress(half_a_pair)).decode()) is None


@FEW
@given(st.lists(st.integers(0, 2), max_size=12))
def test_the_shortest_period_is_the_shortest(values: list[int]) -> None:
    periods = [
        p
        for p in range(1, len(values) + 1)
        if all(values[i] == values[i - p] for i in range(p, len(values)))
    ]
    assert shortest_period(values) == (periods[0] if periods else 0)


@FEW
@given(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.integers(1, 5), st.randoms())
def test_loops_are_found_soon_and_nothing_else_is(
    piece: list[int], step: int, random: object
) -> None:
    watch = RepetitionWatch(64)
    varied = [i * i % 101 for i in range(200)]
    assert not any(watch.push(varied[i : i + step]) for i in range(0, 200, step))
    loop = piece * 200
    ended = next(i for i in range(0, len(loop), step) if watch.push(loop[i : i + step]))
    assert 64 <= ended + step <= 64 + 16 + 2 * step
    assert not RepetitionWatch(0).push(loop)


@FEW
@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_common_beginning(start: list[int], one: list[int], other: list[int]) -> None:
    a, b = start + one, start + other
    naive = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    expected = min(len(a), len(b)) if naive is None else naive
    assert num_shared(array("I", a), array("I", b)) == expected


def byte_tokenizer() -> ByteLevelTokenizer:
    vocab = {chr(code): code - 33 for code in range(33, 127)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    return ByteLevelTokenizer(backend)


def test_a_near_miss_names_the_token_where_it_left() -> None:
    tokenizer = byte_tokenizer()
    misses = NearMisses(tokenizer)
    head = "H" * 130

    def note(name: str, text: str) -> str | None:
        miss = misses.note(name, tokenizer.encode(text, add_special_tokens=False))
        return None if miss is None else str(miss)

    assert note("a", head + "tokens-left:17;rest") is None  # the first of its head
    assert note("b", head + "tokens-left:17;rest,and,more") is None  # goes on from the first
    told = note("c", head + "tokens-left:16;rest")
    assert told is not None
    assert told.startswith("c: 149 prompt tokens follow ")
    assert "for 143; after 'okens-left:1' comes '6;rest' instead of '7;rest" in told
    assert note("d", "G" + head) is None  # another head
    assert note("e", "short") is None


def test_near_misses_remember_a_bounded_number_of_prompts() -> None:
    misses = NearMisses(byte_tokenizer())
    for number in range(300):
        head = [number % 90] * (number // 90 + 1) + [91] * 127
        misses.note(str(number), head)
    assert len(misses._heads) == 64
    for number in range(20):
        misses.note(str(number), [92] * 128 + [number])
    assert max(len(kept) for kept in misses._heads.values()) == 4
