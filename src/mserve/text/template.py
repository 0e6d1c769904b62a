"""Messages to one prompt string, by the checkpoint's own chat template in a sandbox.

The template is a program from the checkpoint: it sees only plain values, cannot reach attributes
or modules, and is stopped when it writes too much or takes too long. Knows Jinja. Does not know
token ids or HTTP.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from mserve.core import CheckpointError, RequestError

_MAX_CHARS = 64 << 20  # twice the largest request body
_MAX_S = 10.0
_OURS = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})


class ChatTemplate(Protocol):
    """Renders messages; ``variables`` are the names a request may set."""

    variables: frozenset[str]

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str: ...


class JinjaChatTemplate:
    """A template of the kind that checkpoints ship."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], where: str) -> None:
        """``special_tokens`` by their config names ("bos_token"); ``where`` names the file."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"{where}, line {error.lineno}: {error.message}",
                hint="pass a working template with --chat-template",
            ) from None
        self._special_tokens = dict(special_tokens)
        self.variables = frozenset(names) - _OURS - frozenset(special_tokens) - {"tools"}

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """Raises ``RequestError`` when the template refuses the messages."""
        values = {
            **self._special_tokens,
            **{name: value for name, value in variables.items() if name in self.variables},
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return "".join(_capped(self._template.generate(values)))
        except _RefusedByTemplateError as error:
            message = f"the chat template refused these messages: {error}"
        except jinja2.TemplateError as failure:
            message = f"the chat template failed on these messages: {failure}"
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError):
            message = "the chat template cannot render messages of this form"
        raise RequestError(message, param="messages", code="chat_template_error")


class NoChatTemplate:
    """A checkpoint that came without one: prompts must be rendered by the caller."""

    variables: frozenset[str] = frozenset()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        raise RequestError(
            "this checkpoint has no chat template: use /v1/completions, or start the server "
            "with --chat-template",
            param="messages",
            code="no_chat_template",
        )


def load_chat_template(checkpoint: Path, override: Path | None = None) -> ChatTemplate:
    """``override``, else ``chat_template.jinja``, else the one in ``tokenizer_config.json``."""
    config_path = checkpoint / "tokenizer_config.json"
    config = _read_config(config_path)
    special_tokens = {
        name: text
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (text := _token_text(config.get(name))) is not None
    }
    for path in (override, checkpoint / "chat_template.jinja"):
        if path is not None and (path is override or path.exists()):
            try:
                source = path.read_text(encoding="utf-8")
            except OSError as error:
                reason = error.strerror
            except UnicodeDecodeError:
                reason = "it is not UTF-8"
            else:
                return JinjaChatTemplate(source, special_tokens=special_tokens, where=str(path))
            raise CheckpointError(f"cannot read the chat template {path}: {reason}")
    default = _default_template(config.get("chat_template"))
    if default is None:
        return NoChatTemplate()
    return JinjaChatTemplate(default, special_tokens=special_tokens, where=str(config_path))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return config if isinstance(config, dict) else {}


def _token_text(value: object) -> str | None:
    """A special token is written as a string or as an object with its ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _default_template(value: object) -> str | None:
    """A config holds one template, or a list of named ones of which we take "default"."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _capped(pieces: Iterator[str]) -> Iterator[str]:
    deadline_s = time.monotonic() + _MAX_S
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > _MAX_CHARS:
            raise _RefusedByTemplateError(f"more than {_MAX_CHARS} characters of prompt")
        if time.monotonic() > deadline_s:
            raise _RefusedByTemplateError(f"rendering took longer than {_MAX_S:.0f} s")
        yield piece


class _RefusedByTemplateError(Exception):
    pass


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedByTemplateError(message)


def _strftime_now(date_format: str) -> str:
    return datetime.datetime.now().strftime(date_format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter escapes HTML, which would show in the prompt."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
