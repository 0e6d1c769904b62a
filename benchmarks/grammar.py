"""What following a grammar costs: building it once, and the mask for each token.

    PYTHONPATH=src python benchmarks/grammar.py

Over a vocabulary of the published size, random tokens among those allowed, one thread. In the
engine this runs beside the forward pass.
"""

from __future__ import annotations

import random
import time

import numpy as np
import tokenizers

from mserve.core import RequestError
from mserve.matcher import Matcher, Vocabulary, grammar_text
from mserve.text import ByteLevelTokenizer
from mserve.text.dialects import Start, marker_ids, of_family
from mserve.text.grammar import Tool, constraint_for, vocabulary_facts
from mserve.toy.tokenizer import tokenizer_json

VOCAB_SIZE = 200_064
NUM_TOKENS = 300
SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "integer"}, "minItems": 50},
        "mode": {"enum": ["read", "write"]},
    },
    "required": ["path", "lines", "mode"],
    "additionalProperties": False,
}
HOSTILE = {
    "ambiguous": 'start: p\np: "a" p "a" | "b" p "b" | p p | "a" | "b" | ',
    "four ways": 'start: s\ns: s s s s | s s s | s s | "a" | "b" | ',
    "wide regex": r"start: /(?:\w{1,200}\s){1,200}\w/",
}


def main() -> None:
    dialect = of_family("m3")
    tokenizer = ByteLevelTokenizer(tokenizers.Tokenizer.from_str(tokenizer_json("m3", VOCAB_SIZE)))
    ids = marker_ids(dialect, tokenizer)
    facts = vocabulary_facts(tokenizer, dialect, tokenizer.encode("[e~[", add_special_tokens=False))
    assert facts is not None
    started_s = time.perf_counter()
    vocabulary = Vocabulary(facts)
    print(f"vocabulary of {VOCAB_SIZE:,} tokens: {time.perf_counter() - started_s:.2f} s")
    asked = {
        "json schema": {"structured_outputs": {"json": SCHEMA}},
        "regex": {"structured_outputs": {"regex": r"[\w.]+@\w+\.com"}},
        "one tool": {"tools": [Tool("edit", SCHEMA)], "tool_choice": "required"},
        "100 tools": {
            "tools": [Tool(f"edit{number}", SCHEMA) for number in range(100)],
            "tool_choice": "required",
        },
    }
    for name, fields in asked.items():
        found = constraint_for(dialect, ids, Start.CONTENT, **fields)
        assert found is not None
        measure(name, found.constraint.grammar, vocabulary)
    for name, grammar in HOSTILE.items():
        measure(f"hostile: {name}", grammar_text({"all": {"lark_grammar": grammar}}), vocabulary)


def measure(name: str, grammar: str, vocabulary: Vocabulary) -> None:
    started_s = time.perf_counter()
    matcher = Matcher(grammar, vocabulary)
    build_s = time.perf_counter() - started_s
    chooser, steps_s, end = random.Random(0), [], "still going"
    try:
        while len(steps_s) < NUM_TOKENS:
            started_s = time.perf_counter()
            mask = matcher.allowed()
            allowed_s = time.perf_counter() - started_s
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            further = [
                i for i in np.flatnonzero(bits).tolist() if i not in vocabulary.facts.eos_ids
            ]
            if not further:
                end = "ended"
                break
            token_id = chooser.choice(further)
            started_s = time.perf_counter()
            matcher.accept(token_id)
            steps_s.append(allowed_s + time.perf_counter() - started_s)
    except RequestError:
        end = "met a limit"
    median_us, worst_us = np.median(steps_s) * 1e6, max(steps_s) * 1e6
    print(
        f"{name:20} build {build_s * 1e3:6.1f} ms   token: median {median_us:7.0f} us, "
        f"worst {worst_us:7.0f} us   {len(steps_s)} tokens, {end}"
    )


if __name__ == "__main__":
    main()
