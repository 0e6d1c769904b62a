"""Makes the tokenizer and the chat template of the demo model.

    python -m demo.tokenizer      writes both beside the weights in the package

A byte-level BPE learned from generated examples, every digit and every Chinese character a token
of its own: then a number is its digits wherever it stands, and a city keeps its tokens whatever
is around it. Above it the family's 64 added tokens. A trained model depends on every id, so the
files are kept as they are while examples change; this makes new ones for a model trained anew.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.data import copying, known
from demo.data.draw import Draw
from demo.data.mixture import SKILLS
from demo.data.render import TOKENIZER_FILES
from mserve.toy.shape import NUM_SPECIAL_TOKENS
from mserve.toy.tokenizer import add_family_tokens, chat_template

VOCAB_SIZE = 4096
_SEED = 1
_EXAMPLES_PER_SHARE = 1500
_SPLIT = r" ?[\p{L}&&[^\p{Han}]]+|\p{Han}|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_MODES = (" adaptive", " enabled", " disabled")
_TOY_IDENTITY = "a toy in the shape of MiniMax-M3"
_IDENTITY = "a demo model in the shape of MiniMax-M3"


def main() -> None:
    (TOKENIZER_FILES / "chat_template.jinja").write_text(template_source(), encoding="utf-8")
    text = trained().to_str(pretty=True) + "\n"
    (TOKENIZER_FILES / "tokenizer.json").write_text(text, encoding="utf-8")


def template_source() -> str:
    """The family's form, as the toys have it, under the demo's own identity."""
    source = chat_template("m3")
    assert source.count(_TOY_IDENTITY) == 1
    return source.replace(_TOY_IDENTITY, _IDENTITY)


def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - NUM_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    add_family_tokens(tokenizer, "m3")
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def corpus() -> Iterator[str]:
    """Words first, so that each becomes a token with and without its blank; then examples."""
    facts = (text for name in dir(known) if name.isupper() for text in _pairs(getattr(known, name)))
    for word in (*sum(copying.KINDS, ()), *facts):
        yield from (word, f" {word}") * 20
    yield from [template_source(), *_MODES] * 100
    rng = random.Random(_SEED)
    draws = Draw(rng), Draw(rng, held_out=True)
    for make, share in SKILLS.values():
        for number in range(int(_EXAMPLES_PER_SHARE * share)):
            example = make(draws[number % len(draws)])
            for message in example.messages:
                yield message["content"]
                yield message.get("reasoning_content", "")
                yield json.dumps(message.get("tool_calls", []), ensure_ascii=False)
            yield from (json.dumps(tool, ensure_ascii=False) for tool in example.tools)


def _pairs(facts: dict[str, str]) -> Iterator[str]:
    for pair in facts.items():
        yield from pair


if __name__ == "__main__":
    main()
