"""Rendered and tokenized chats equal those of transformers over the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import transformers

from mserve.text import load_chat_template, load_tokenizer
from mserve.toy import write_toy

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": 'Hello, 世界! 🙂\n\n  <b> & "quotes"'}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because.", "reasoning_content": "They ask why."},
        {"role": "user", "content": "And 12345?"},
    ],
]


@pytest.mark.parametrize("arch", ["m2", "m3"])
def test_same_prompt_as_transformers(arch: Literal["m2", "m3"], tmp_path: Path) -> None:
    write_toy(tmp_path / arch, preset=f"{arch}-tiny", arch=arch, seed=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / arch)
    tokenizer = load_tokenizer(tmp_path / arch)
    template = load_chat_template(tmp_path / arch)
    for messages in CHATS:
        for generate in (True, False):
            text = template.render(messages, add_generation_prompt=generate, variables={})
            assert text == theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == theirs.encode(text, add_special_tokens=False)
            for skip in (True, False):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip
                )
