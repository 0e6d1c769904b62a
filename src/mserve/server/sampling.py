"""From a request's fields to ``SamplingParams`` that are known to be within bounds.

Precedence: the request, then the checkpoint's ``generation_config.json``, then the plain
distribution. Knows limits. Does not know messages or streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mserve.core import ContextLengthError, RequestError, SamplingParams
from mserve.server.schema import CompletionRequest, GenerationFields
from mserve.wire import Ready

if TYPE_CHECKING:
    from mserve.server.chat.schema import ChatRequest

_MAX_SALT_CHARS = 128
_SAME_NAME = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "n",
    "prompt_logprobs",
)


def chat_sampling(request: ChatRequest, defaults: SamplingParams, ready: Ready) -> SamplingParams:
    """Raises ``RequestError`` naming the field."""
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    values = _common_values(request)
    if request.max_completion_tokens is not None:
        values["max_tokens"] = request.max_completion_tokens
    if values.get("max_tokens") == 0:
        raise RequestError("max_tokens must be at least 1", param="max_tokens")
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
    return _checked(defaults, values, ready)


def completion_sampling(
    request: CompletionRequest, defaults: SamplingParams, ready: Ready
) -> SamplingParams:
    """With ``echo`` the prompt's tokens are scored like the answer's."""
    values = _common_values(request)
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens 0 makes sense only with echo", param="max_tokens")
    if request.logprobs is not None:
        values["logprobs"] = request.logprobs
    if request.echo and values.get("prompt_logprobs") is None:
        if request.logprobs is not None:
            values["prompt_logprobs"] = request.logprobs
        elif request.max_tokens == 0:
            values["prompt_logprobs"] = 0  # gives the engine something to do, and an end
    return _checked(defaults, values, ready)


def turn_sampling(defaults: SamplingParams, ready: Ready, values: dict[str, Any]) -> SamplingParams:
    """Of a request that has few sampling fields: ``values`` by the names of ``SamplingParams``,
    ``None`` for what it does not say."""
    given = {name: value for name, value in values.items() if value is not None}
    return _checked(defaults, given, ready)


def for_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    """Choice i of a seeded request draws from seed + i, so that each can be had alone."""
    if sampling.n == 1:
        return sampling
    seed = sampling.seed
    if seed is not None:
        seed = (seed + choice + (1 << 63)) % (1 << 64) - (1 << 63)
    return msgspec.structs.replace(sampling, n=1, seed=seed)


def check_context(num_prompt_tokens: int, sampling: SamplingParams, ready: Ready) -> None:
    """Raise ``ContextLengthError`` unless prompt and answer fit."""
    limit = ready.max_model_len
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if num_prompt_tokens + wanted > limit:
        asked = "" if sampling.max_tokens is None else f" and max_tokens asks for {wanted} more"
        raise ContextLengthError(
            f"the context holds {limit} tokens; the prompt has {num_prompt_tokens}{asked}",
            param="max_tokens" if num_prompt_tokens < limit else "prompt",
        )


def check_options(request: GenerationFields, policy: str) -> None:
    """Fields that are neither sampling nor prompt."""
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise RequestError(
            "best_of is not supported", param="best_of", code="unsupported_parameter"
        )
    if request.priority and policy != "priority":
        raise RequestError(
            "priority has no effect under the fcfs policy: start the server with "
            "--scheduling-policy priority",
            param="priority",
            code="unsupported_parameter",
        )
    if request.priority is not None and not -(1 << 31) <= request.priority < 1 << 31:
        raise RequestError("priority must fit 32 bits", param="priority")
    if request.prompt_logprobs is not None and request.stream:
        raise RequestError("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    salt = request.cache_salt or ""
    if len(salt) > _MAX_SALT_CHARS or any(char in "@/\\\0" for char in salt):
        raise RequestError(
            f"cache_salt must have at most {_MAX_SALT_CHARS} characters, none of them @ / \\ NUL",
            param="cache_salt",
        )


def _common_values(request: GenerationFields) -> dict[str, Any]:
    """What the request itself says, by the names of ``SamplingParams``."""
    values: dict[str, Any] = {}
    for name in _SAME_NAME:
        value = getattr(request, name)
        if value is not None:
            values[name] = value
    if values.get("top_k") == -1:
        values["top_k"] = 0  # both spell "keep all"
    if request.stop is not None:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        values["stop"] = tuple(stops)
    if request.stop_token_ids is not None:
        values["stop_token_ids"] = tuple(request.stop_token_ids)
    if request.logit_bias is not None:
        values["logit_bias"] = _logit_bias(request.logit_bias)
    return values


def _logit_bias(by_name: dict[str, float]) -> dict[int, float]:
    bias = {}
    for name, value in by_name.items():
        if not name.isdecimal() or len(name) > 9:
            raise RequestError("logit_bias keys must be token ids", param="logit_bias")
        bias[int(name)] = value
    return bias


def _checked(defaults: SamplingParams, values: dict[str, Any], ready: Ready) -> SamplingParams:
    sampling = msgspec.structs.replace(defaults, **values)
    sampling.validate(ready.vocab_size)
    return sampling
