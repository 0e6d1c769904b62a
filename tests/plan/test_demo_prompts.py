"""What is trained is what the server sends: the demo's prompts, made by the server from the bodies
that ``mserve eval`` sends."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from demo.data import SKILLS, Conversation, held_out_conversation, prompt_of, tokenizer
from demo.data.render import TOKENIZER_FILES
from demo.suites import case_of
from demo.tokenizer import template_source
from mserve.core import SamplingParams
from mserve.server import ServerConfig, Service, TextTools
from mserve.server.chat.request import chat_turn
from mserve.server.chat.schema import ChatRequest
from mserve.server.decode import decode
from mserve.server.prepare import prepare
from mserve.text import by_name, load_chat_template, load_tokenizer, marker_ids
from mserve.wire import Ready

READY = Ready(max_model_len=32_768, vocab_size=4096, num_blocks=256, max_num_seqs=8, max_waiting=8)


@pytest.fixture(scope="module")
def service() -> Service:
    dialect = by_name("minimax_m3")
    text = TextTools(
        load_tokenizer(TOKENIZER_FILES),
        load_chat_template(TOKENIZER_FILES),
        SamplingParams(),
        dialect,
        marker_ids(dialect, tokenizer()),
    )
    return Service(ServerConfig(served_model_names=("demo",)), text)


def server_prompt(service: Service, conversation: Conversation) -> list[int]:
    body = case_of(conversation)["request"]
    body.pop("response_format", None)  # what it enforces does not show in the prompt
    request, ignored = decode(json.dumps(body).encode(), ChatRequest)
    assert not ignored
    turn = chat_turn(request, service.text.defaults, READY)
    prepared = asyncio.run(prepare(service, READY, turn))
    assert not prepared.ignored and not prepared.warnings
    return prepared.prompt.token_ids


def test_the_template_is_the_family_s() -> None:
    assert (TOKENIZER_FILES / "chat_template.jinja").read_text() == template_source()


@pytest.mark.parametrize("skill", SKILLS)
def test_the_server_prompts_as_in_training(service: Service, skill: str) -> None:
    rng = random.Random(skill)
    for _ in range(12):
        conversation = held_out_conversation(rng, skill)
        assert server_prompt(service, conversation) == prompt_of(conversation)
