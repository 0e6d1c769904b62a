"""Does transformers give the same greedy answers as mserve, in fp32, to the suites' questions?

    python -m demo.compare CHECKPOINT [--suite needle ...] [--limit N]

mserve answers; transformers then reads question and answer at once and says at each place which
token it would have written. If that is the answer's next one everywhere, its own greedy answer is
the same. Prints a line per suite and each first difference with how near the two tokens were.
Exit 1 if there is one. Questions on one text are read behind one cache of that text: 12,000 tokens
take transformers 7 GB and most of a minute.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from demo.data.conversation import Conversation
from demo.data.render import prompt_of, tokenizer
from mserve.core import SamplingParams
from mserve.evaluate import Case, first_of_parts, load_suite, suite_names
from mserve.llm import LLM

_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
_CACHE_BYTES = 1 << 30
_WORTH_KEEPING = 512  # tokens; less is read again sooner than a cache is copied


class Question(NamedTuple):
    suite: str
    token_ids: list[int]


class Difference(NamedTuple):
    """At ``place`` of the answer mserve wrote ``ours`` where transformers has ``theirs``, whose
    logit is higher by ``margin``."""

    place: int
    ours: str
    theirs: str
    margin: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.compare", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--suite", action="append", help="default: all of them")
    parser.add_argument("--limit", type=int, help="questions of each part of a suite")
    given = parser.parse_args()
    asked = list(questions(given.suite or suite_names(), given.limit))
    answers = mserve_answers(given.checkpoint, asked)
    reader = Reader(transformers_model(given.checkpoint))
    same: dict[str, list[bool]] = defaultdict(list)
    for number, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        following = asked[number + 1].token_ids if number + 1 < len(asked) else []
        found = first_difference(reader.logits(question.token_ids, answer, following), answer)
        same[question.suite].append(found is None)
        if found is not None:
            print(f"\n{question.suite}: {found}")
        print(f"\r{number + 1} of {len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for suite, equal in same.items():
        print(f"{suite}: {sum(equal)} of {len(equal)} answers are the same")
    return 0 if all(all(equal) for equal in same.values()) else 1


def questions(suites: list[str], limit: int | None) -> Iterator[Question]:
    """Prompts as the server makes them. A schema is not enforced: both answer as they like."""
    for name in suites:
        for case in first_of_parts(load_suite(name)[1], limit):
            yield Question(name, prompt_of(_conversation(case)))


def mserve_answers(checkpoint: Path, asked: list[Question]) -> list[list[int]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=300)
    with LLM(str(checkpoint), dtype="float32", kv_cache_memory_bytes=_CACHE_BYTES) as llm:
        prompts = [question.token_ids for question in asked]
        return [completion.token_ids for completion in llm.generate(prompts, sampling)]


def transformers_model(checkpoint: Path) -> Any:
    """With a small vision tower, of which the demo has none."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    for name, value in _VISION.items():
        setattr(config.vision_config, name, value)
    transformers.logging.set_verbosity_error()
    loader = transformers.AutoModelForImageTextToText
    return loader.from_pretrained(checkpoint, config=config, dtype=torch.float32).eval()


class Reader:
    """Logits of transformers, which keeps the beginning that a question shares with the next."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept: list[int] = []
        self.cache: Any = None

    @torch.no_grad()
    def logits(self, prompt: list[int], answer: list[int], following: list[int]) -> torch.Tensor:
        """[len(answer), vocabulary]: row i is behind the prompt and i tokens of the answer."""
        if self.kept != prompt[: len(self.kept)]:
            self.kept, self.cache = [], None
        shared = _num_shared(prompt, following)
        if not self.kept and shared >= _WORTH_KEEPING:
            self.kept = prompt[:shared]
            read = self.model(input_ids=torch.tensor([self.kept]), logits_to_keep=1, use_cache=True)
            self.cache = read.past_key_values
        rest = torch.tensor([[*prompt[len(self.kept) :], *answer]])
        # A copy, since reading adds to a cache.
        cache = copy.deepcopy(self.cache) if self.kept else None
        read = self.model(
            input_ids=rest,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=len(answer) + 1,
        )
        return read.logits[0, :-1]


def _num_shared(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(one), len(other)))


def first_difference(logits: torch.Tensor, answer: list[int]) -> Difference | None:
    best = logits.argmax(-1)
    for place, token_id in enumerate(answer):
        if int(best[place]) != token_id:
            margin = float(logits[place].max() - logits[place, token_id])
            return Difference(place, _shown(token_id), _shown(int(best[place])), margin)
    return None


def _conversation(case: Case) -> Conversation:
    request = case.request
    return Conversation(
        messages=[*request["messages"], {"role": "assistant", "content": ""}],
        check={},
        tools=request.get("tools", []),
        mode=request.get("thinking", {}).get("type", "adaptive"),
    )


def _shown(token_id: int) -> str:
    return repr(tokenizer().decode([token_id], skip_special_tokens=False))


if __name__ == "__main__":
    sys.exit(main())
