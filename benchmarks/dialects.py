"""Microseconds per token of telling thinking, content and tool calls apart.

    python benchmarks/dialects.py [--tokens 20000]

For plain content and for one long string argument, in both dialects: the detokenizer alone, and
with the parser. The budget for a whole stream, event encoding included, is about 25 us per token:
256 streams at 50 tokens/s in 35 % of a core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Final, Literal

import tokenizers

from mserve.text import (
    ByteLevelTokenizer,
    Detokenizer,
    DialectParser,
    Start,
    Tools,
    marker_ids,
    of_family,
)
from mserve.toy.tokenizer import tokenizer_json

FAMILIES: Final[tuple[Literal["m2", "m3"], ...]] = ("m2", "m3")
PROSE = "The server plans one step, runs it on every rank, and settles what came of it.\n"
CODE = 'def push(self, text: str) -> None:\n    if a < b and "c" in d:\n        return {1: [2]}\n'
MARK = "]<]minimax[>["
CALLS = {
    "m2": '<minimax:tool_call>\n<invoke name="write">\n<parameter name="content">',
    "m3": f'{MARK}<tool_call>\n{MARK}<invoke name="write">{MARK}<content>',
}
TOOLS = Tools({"write": {"properties": {"content": {"type": "string"}}}})


NUM_RUNS = 5


def shortest_us(run: Callable[[], int], num_tokens: int) -> float:
    """Of some runs, per token."""
    times = []
    for _ in range(NUM_RUNS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return min(times) / num_tokens * 1e6


class Case:
    """One text in one dialect."""

    def __init__(self, family: Literal["m2", "m3"], begin: str, body: str, num_tokens: int) -> None:
        backend = tokenizers.Tokenizer.from_str(tokenizer_json(family, 32_000))
        self._tokenizer = ByteLevelTokenizer(backend)
        self._dialect = of_family(family)
        self._marker_ids = marker_ids(self._dialect, self._tokenizer)
        once = self._tokenizer.encode(body, add_special_tokens=False)
        self.ids = self._tokenizer.encode(begin, add_special_tokens=False)
        self.ids += (once * (num_tokens // len(once) + 1))[:num_tokens]

    def detokenize(self) -> int:
        push = Detokenizer(self._tokenizer).push
        return sum(len(push(token_id)) for token_id in self.ids)

    def parse(self) -> int:
        """Number of events."""
        push = Detokenizer(self._tokenizer).push
        parser = DialectParser(self._dialect, Start.CONTENT, TOOLS, marker_ids=self._marker_ids)
        return sum(len(parser.push(token_id, push(token_id))) for token_id in self.ids)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--tokens", type=int, default=20_000, help="tokens of each text")
    num_tokens = options.parse_args().tokens
    print(f"{'':31}  detokenizer  with parser  events/token")
    for family in FAMILIES:
        for name, begin, body in (
            ("prose", "", PROSE),
            ("code", "", CODE),
            ("prose in a string argument", CALLS[family], PROSE),
            ("code in a string argument", CALLS[family], CODE),
        ):
            case = Case(family, begin, body, num_tokens)
            alone = shortest_us(case.detokenize, len(case.ids))
            both = shortest_us(case.parse, len(case.ids))
            share = case.parse() / len(case.ids)
            print(f"{family}  {name:27}  {alone:8.2f} us  {both:8.2f} us  {share:12.2f}")


if __name__ == "__main__":
    main()
