"""From what a request calls its prompt to token ids within the vocabulary.

Knows templates, the tokenizer and the shapes a prompt may have. Does not know sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from mserve.core import ContextLengthError, RequestError
from mserve.server.off_loop import off_loop_if_long
from mserve.server.schema import Prompts
from mserve.server.service import TextTools
from mserve.text import Tokenizer, unquote
from mserve.wire import Ready

MAX_PROMPTS = 1024

_SAID = ("content", "reasoning_content")  # what an assistant's answer consists of


class Prompt(NamedTuple):
    """``text`` is ``None`` when the caller sent ids or messages."""

    token_ids: list[int]
    text: str | None = None


def chat_prompt(
    text: TextTools,
    ready: Ready,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: dict[str, Any] | None = None,
    add_special_tokens: bool = False,
    edit: Callable[[str], str] | None = None,
) -> Prompt:
    """Render messages in the template's form, ``edit`` what it wrote, tokenize. The template
    writes its own special tokens, so none are added; nothing that a message or a tool holds can
    become one."""
    tokenizer = text.tokenizer
    rendered = text.template.render(
        [_quoted(message, tokenizer) for message in messages],
        tools=tokenizer.quote(tools),
        add_generation_prompt=add_generation_prompt,
        variables=tokenizer.quote(variables or {}),
    )
    if edit is not None:
        rendered = edit(rendered)
    _check_length(text, ready, rendered)
    ids = tokenizer.encode_rendered(rendered, add_special_tokens=add_special_tokens)
    return Prompt(check_ids(ids, ready), unquote(rendered))


async def text_prompts(
    text: TextTools, ready: Ready, prompts: Prompts, *, add_special_tokens: bool = True
) -> list[Prompt]:
    """One ``Prompt`` per prompt, in order."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not prompts:
        raise RequestError("prompt is empty", param="prompt")
    if isinstance(prompts[0], int):
        return [Prompt(check_ids(prompts, ready))]
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(f"at most {MAX_PROMPTS} prompts are allowed", param="prompt")
    made = []
    for prompt in prompts:
        if isinstance(prompt, str):
            encode = functools.partial(_encode, text, ready, prompt, add_special_tokens)
            made.append(await off_loop_if_long(len(prompt), encode))
        elif isinstance(prompt, list):
            made.append(Prompt(check_ids(prompt, ready)))
        else:
            raise RequestError("prompt mixes texts and token ids", param="prompt")
    return made


def ignored_variables(text: TextTools, variables: dict[str, Any] | None) -> list[str]:
    """Names in ``chat_template_kwargs`` that the template does not read or may not be given."""
    return [
        f"chat_template_kwargs.{name}"
        for name in variables or {}
        if name not in text.template.variables
    ]


def _quoted(message: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """``message`` unable to spell control tokens. An assistant's words may hold those that answers
    show: templates look for ``</think>`` in them, and it was the model that wrote them."""
    quoted: dict[str, Any] = {**tokenizer.quote(message), "role": message["role"]}
    if message["role"] == "assistant":
        said = {key: message[key] for key in _SAID if key in message}
        quoted |= tokenizer.quote(said, hidden_only=True)
    return quoted


def _encode(text: TextTools, ready: Ready, prompt: str, add_special_tokens: bool) -> Prompt:
    _check_length(text, ready, prompt)
    token_ids = text.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
    return Prompt(check_ids(token_ids, ready), prompt)


def _check_length(text: TextTools, ready: Ready, prompt: str) -> None:
    """Refuse what cannot fit before time is spent on its tokens."""
    at_least = -(-len(prompt) // text.tokenizer.longest_token_chars)
    if text.tokenizer.vocab_size and at_least > ready.max_model_len:
        raise ContextLengthError(
            f"the context holds {ready.max_model_len} tokens; the prompt has at least {at_least}",
            param="prompt",
        )


def check_ids(token_ids: list[Any], ready: Ready, *, param: str = "prompt") -> list[int]:
    """``token_ids``, all of them ids of the model's vocabulary. Raises ``RequestError``."""
    if not all(type(token_id) is int for token_id in token_ids):
        raise RequestError(f"{param} must be a text or a list of token ids", param=param)
    if not token_ids:
        raise RequestError("the prompt has no tokens", param=param)
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < ready.vocab_size:
            raise RequestError(
                f"token id {token_id} is outside the vocabulary of {ready.vocab_size}",
                param=param,
            )
    return token_ids
