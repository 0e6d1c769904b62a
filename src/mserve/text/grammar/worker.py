"""The process in which a grammar is tried: ``python -m mserve.text.grammar.worker``.

Frames on standard input and output, each with its length before it: first the vocabulary, then
one grammar after the other, each answered by what is wrong with it, or nothing. Its memory is
bounded; its time is bounded by whoever started it, who kills it. Ends with its input.
"""

from __future__ import annotations

import resource
import signal
import sys

import msgspec

from mserve.core import RequestError
from mserve.matcher import Matcher, Vocabulary, VocabularyFacts
from mserve.text.grammar.frames import read_frame, write_frame

_MAX_FURTHER_BYTES = 1 << 30
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
        Matcher(grammar, vocabulary).allowed()
    except RequestError as error:
        return error.message
    return ""


def _bound_memory() -> None:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        used_bytes = int(statm.read().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + _MAX_FURTHER_BYTES,) * 2)


if __name__ == "__main__":
    main()
