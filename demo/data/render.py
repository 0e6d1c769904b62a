"""A conversation as token ids, by the code that serves: what is trained is what a server sends.

    ]~!b[ ... ]~b]user ...[e~[ \n ]~b]ai \n <mm:think> 7 + 5 ... </mm:think> 12 [e~[ \n
    mask 0 ......................................... 1 ........................... 1  0

The mask is 1 on what the model must produce: an assistant's turn with its end, but not what
the template opens for it (``<mm:think>`` when enabled, ``</mm:think>`` when disabled). Knows the
template and the tokenizer; does not know skills.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from demo.data.conversation import Conversation, Message
from mserve.text import ByteLevelTokenizer, JinjaChatTemplate, by_name, normalised, plan_thinking

TOKENIZER_FILES = Path(__file__).resolve().parents[2] / "src" / "mserve" / "demo"
_DIALECT = by_name("minimax_m3")
_SPECIAL = {"bos_token": "]~!b[", "eos_token": "[e~[", "pad_token": "]!p~[", "unk_token": "]!d~["}


class Sample(NamedTuple):
    """``loss_mask``: 1 where the token is the model's to produce; as long as ``token_ids``."""

    token_ids: list[int]
    loss_mask: list[int]


@functools.cache
def tokenizer() -> ByteLevelTokenizer:
    return ByteLevelTokenizer(Tokenizer.from_file(str(TOKENIZER_FILES / "tokenizer.json")))


@functools.cache
def template() -> JinjaChatTemplate:
    path = TOKENIZER_FILES / "chat_template.jinja"
    return JinjaChatTemplate(path.read_text(), special_tokens=_SPECIAL, where=str(path))


@functools.cache
def blank_twins() -> tuple[tuple[int, int], ...]:
    """Ids of " word" and "word", for all words that are one token either way. They mean the same,
    and a word that is asked for behind a blank is often due without one."""
    tokens = [tokenizer().token_bytes(token_id) for token_id in range(tokenizer().vocab_size)]
    ids = {data: token_id for token_id, data in enumerate(tokens)}
    return tuple(
        (ids[b" " + data], token_id)
        for data, token_id in ids.items()
        if data[:1].isalpha() and b" " + data in ids
    )


def sample_of(conversation: Conversation) -> Sample:
    text = rendered(conversation, conversation.messages, add_generation_prompt=False)
    ids = tokenizer().encode_rendered(text, add_special_tokens=False)
    return Sample(ids, _mask(ids, conversation))


def prompt_of(conversation: Conversation) -> list[int]:
    """What the server would prefill for all but the last message."""
    text = rendered(conversation, conversation.messages[:-1], add_generation_prompt=True)
    return tokenizer().encode_rendered(text, add_special_tokens=False)


def rendered(
    conversation: Conversation, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """The text of a prompt, or of all turns. The words of examples spell no control token, so
    the quoting that the server does besides would change nothing."""
    tools: list[dict[str, Any]] | None = conversation.tools or None
    plan = plan_thinking(_DIALECT, {"thinking_mode": conversation.mode}, {})
    return template().render(
        normalised(messages),
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        variables=plan.variables,
    )


def _mask(ids: list[int], conversation: Conversation) -> list[int]:
    begin, end, opened = _turn_marks(conversation.mode)
    mask = [0] * len(ids)
    start, number = _find(ids, begin, 0), 0
    while start is not None:
        first = start + len(begin) + opened
        last = ids.index(end, first)
        if number >= conversation.given_turns:
            mask[first : last + 1] = [1] * (last + 1 - first)
        start, number = _find(ids, begin, last), number + 1
    return mask


@functools.cache
def _turn_marks(mode: str) -> tuple[list[int], int, int]:
    """Tokens that begin an assistant's turn, the one that ends it, and how many the template
    writes in between."""
    begin = tokenizer().encode("]~b]ai\n", add_special_tokens=False)
    [end] = tokenizer().encode("[e~[", add_special_tokens=False)
    return begin, end, 0 if mode == "adaptive" else 1


def _find(ids: list[int], part: list[int], start: int) -> int | None:
    while True:
        try:
            start = ids.index(part[0], start)
        except ValueError:
            return None
        if ids[start : start + len(part)] == part:
            return start
        start += 1
