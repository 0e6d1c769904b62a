"""What the front end reads of a checkpoint's folder: template, tokenizer, defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.models

from mserve.core import CheckpointError, RequestError
from mserve.text import (
    JinjaChatTemplate,
    NoChatTemplate,
    NoTokenizer,
    load_chat_template,
    load_tokenizer,
)

HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, messages: list[dict[str, Any]] | None = None, **variables: Any) -> str:
    template = JinjaChatTemplate(source, special_tokens={"bos_token": "<s>"}, where="a template")
    return template.render(messages or HELLO, add_generation_prompt=True, variables=variables)


def test_blocks_leave_no_blank_lines() -> None:
    source = (
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n{% endif %}\n{% endfor %}"
    )
    assert render(source) == "hello\n"


def test_json_is_not_escaped_for_html() -> None:
    messages = [{"role": "user", "content": "<b> & 'é'"}]
    assert render("{{ messages[0] | tojson }}", messages) == (
        '{"role": "user", "content": "<b> & \'é\'"}'
    )


def test_special_tokens_and_allowed_variables_reach_the_template() -> None:
    source = "{{ bos_token }}{{ mood or 'calm' }}"
    assert render(source) == "<s>calm"
    assert render(source, mood="glad", bos_token="<evil>", messages=[]) == "<s>glad"


def test_loop_controls_and_namespaces_work() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if ns.n %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{{ m.content }}{% endfor %}"
    )
    assert render(source, HELLO * 3) == "hello"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(1000000) %}x{% endfor %}", "cannot render"),
        ("{{ 'x' + 1 }}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
    ],
)
def test_what_a_template_refuses_is_the_callers_error(source: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert words in caught.value.message


def test_a_template_cannot_write_without_end() -> None:
    source = (
        "{% for i in range(90000) %}{% for j in range(90000) %}"
        "{{ messages[0].content }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(RequestError, match="characters of prompt"):
        render(source, [{"role": "user", "content": "x" * 100_000}])


def test_template_files_and_their_order(tmp_path: Path) -> None:
    assert isinstance(load_chat_template(tmp_path), NoChatTemplate)
    with pytest.raises(RequestError, match="no chat template"):
        load_chat_template(tmp_path).render(HELLO, add_generation_prompt=True, variables={})

    def rendered(override: Path | None = None) -> str:
        template = load_chat_template(tmp_path, override)
        return template.render(HELLO, add_generation_prompt=False, variables={})

    config: dict[str, Any] = {"chat_template": "config{{ eos_token }}"}
    config["eos_token"] = {"content": "<end>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert rendered() == "config<end>"
    config["chat_template"] = [
        {"name": "tools", "template": "t"},
        {"name": "default", "template": "d"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert rendered() == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered() == "file"
    (tmp_path / "own.jinja").write_text("own")
    assert rendered(tmp_path / "own.jinja") == "own"
    with pytest.raises(CheckpointError, match=r"missing\.jinja"):
        rendered(tmp_path / "missing.jinja")
    (tmp_path / "own.jinja").write_text("a\n{% if %}")
    with pytest.raises(CheckpointError, match="line 2"):
        rendered(tmp_path / "own.jinja")


def test_a_checkpoint_without_tokenizer_refuses_text_only(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, NoTokenizer)
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    with pytest.raises(RequestError, match="token ids") as caught:
        tokenizer.encode("hello", add_special_tokens=True)
    assert caught.value.code == "no_tokenizer"


def test_unusable_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).save(str(path))
    with pytest.raises(CheckpointError, match="supported: ByteLevel"):
        load_tokenizer(tmp_path)
