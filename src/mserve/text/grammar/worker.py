"""The process in which a grammar is tried: ``python -m mserve.text.grammar.worker``.

Frames on standard input and output, each with its length before it: first the vocabulary, then
one grammar after the other, each answered by what is wrong with it, or nothing. Its memory is
bounded; its time is bounded by whoever started it, who kills it. Ends with its input.
"""

from __future__ import annotations

import random
import resource
import signal
import sys

import msgspec
import numpy as np

from mserve.core import RequestError
from mserve.matcher import Matcher, Vocabulary, VocabularyFacts
from mserve.text.grammar.frames import read_frame, write_frame

_MAX_FURTHER_BYTES = 1 << 30
_NUM_WALKS = 4
_NUM_WALK_TOKENS = 32
_PAGE_BYTES = resource.getpagesize()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    frame = read_frame(source)
    if frame is None:
        return
    vocabulary = Vocabulary(msgspec.msgpack.decode(frame, type=VocabularyFacts))
    _bound_memory()
    write_frame(target, b"")
    while (frame := read_frame(source)) is not None:
        write_frame(target, _tried(frame.decode(), vocabulary).encode())


def _tried(grammar: str, vocabulary: Vocabulary) -> str:
    """What is wrong with ``grammar``; empty if nothing is."""
    try:
        matcher = Matcher(grammar, vocabulary)
        for number in range(_NUM_WALKS):
            matcher.rollback(_walk(matcher, vocabulary, random.Random(number)))
    except RequestError as error:
        return error.message
    return ""


def _walk(matcher: Matcher, vocabulary: Vocabulary, chooser: random.Random) -> int:
    """Follow a grammar at random, not to its end if it goes on. Returns the number of tokens.

    Its beginning alone says little: what is too wide shows at the first choice between branches.
    """
    for number in range(_NUM_WALK_TOKENS):
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        further = [i for i in np.flatnonzero(bits).tolist() if i not in vocabulary.facts.eos_ids]
        if not further:
            return number
        matcher.accept(chooser.choice(further))
    return _NUM_WALK_TOKENS


def _bound_memory() -> None:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        used_bytes = int(statm.read().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + _MAX_FURTHER_BYTES,) * 2)


if __name__ == "__main__":
    main()
