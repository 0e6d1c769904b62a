"""A request and its answer, as engine and front end speak of them: token ids, never text.

Knows ids, limits and sampling numbers. Does not know HTTP, text, blocks or tensors. Stop strings
travel in ``SamplingParams`` for the text side; the engine itself only acts on token ids.
"""

from __future__ import annotations

import enum

import msgspec

from mserve.core.constraint import MAX_GRAMMAR_CHARS, Constraint
from mserve.core.errors import RequestError

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024
MIN_REPETITION_PENALTY = 0.01
"""Logits are divided by it: near zero they would leave the range of floats."""


class ThinkingBudget(msgspec.Struct, frozen=True):
    """After ``max_tokens`` tokens of thinking its closer is the next token, whatever the model
    would say."""

    max_tokens: int
    close_id: int  # the token that ends thinking
    open_id: int  # the one that begins it
    is_open: bool  # the prompt has begun it


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Defaults are the plain distribution; a checkpoint's
    ``generation_config.json`` replaces them before a request's own values do."""

    max_tokens: int | None = None  # None: as many as the context still holds
    min_tokens: int = 0  # until then no eos, stop id or stop string ends the output
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output tokens
    presence_penalty: float = 0.0  # over output tokens
    frequency_penalty: float = 0.0  # over output tokens
    seed: int | None = None
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    thinking_budget: ThinkingBudget | None = None
    n: int = 1
    logprobs: int | None = None  # alternatives per output token; 0: the chosen one only
    prompt_logprobs: int | None = None  # the same for prompt tokens; such a prompt is not reused
    constraint: Constraint | None = None

    def validate(self, vocab_size: int) -> None:
        """Raise ``RequestError`` naming the first value out of bounds."""
        _between("temperature", self.temperature, 0.0, 2.0)
        _between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("top_k", self.top_k, 0, vocab_size)
        _between("n", self.n, 1, MAX_CHOICES)
        _between("min_tokens", self.min_tokens, 0, 1 << 30)
        if self.max_tokens is not None:
            _between("max_tokens", self.max_tokens, 0, 1 << 30)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens {self.min_tokens} is greater than max_tokens {self.max_tokens}",
                    param="min_tokens",
                )
        if self.seed is not None:
            _between("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _between(name, count, 0, MAX_LOGPROBS)
        _validate_stops(self.stop)
        if self.thinking_budget is not None:
            _between("thinking_budget", self.thinking_budget.max_tokens, 0, 1 << 30)
            for token_id in (self.thinking_budget.close_id, self.thinking_budget.open_id):
                _between("thinking_budget", token_id, 0, vocab_size - 1)
        if self.constraint is not None:
            self._validate_constrained(self.constraint)
        for token_id in self.stop_token_ids:
            _between("stop_token_ids", token_id, 0, vocab_size - 1)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias holds more than {MAX_LOGIT_BIAS} ids", param="logit_bias"
            )
        for token_id, bias in self.logit_bias.items():
            _between("logit_bias", token_id, 0, vocab_size - 1)
            _between("logit_bias", bias, -100.0, 100.0)

    def _validate_constrained(self, constraint: Constraint) -> None:
        """Under a grammar the answer ends where the grammar says, and only there."""
        if len(constraint.grammar) > MAX_GRAMMAR_CHARS:
            raise RequestError("the grammar of this request is too large", code="invalid_schema")
        for name, value in (("min_tokens", self.min_tokens), ("ignore_eos", self.ignore_eos)):
            if value:
                raise RequestError(
                    f"{name} cannot be combined with structured output or forced tool calls, "
                    "whose grammar says where the answer ends; leave it out",
                    param=name,
                )


def _between(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = (low < value if open_low else low <= value) and value <= high  # never true of NaN
    if not inside:
        bracket = "(" if open_low else "["
        got = str(value)[:40]  # an integer may have thousands of digits
        raise RequestError(f"{name} must be in {bracket}{low}, {high}], got {got}", param=name)


def _validate_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(f"at most {MAX_STOP_STRINGS} stop strings are allowed", param="stop")
    for stop in stops:
        if not stop:
            raise RequestError("a stop string is empty", param="stop")
        if len(stop) > MAX_STOP_STRING_CHARS:
            raise RequestError(
                f"a stop string is longer than {MAX_STOP_STRING_CHARS} characters", param="stop"
            )


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to continue. ``n`` choices are ``n`` requests; the front end fans out."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0  # lower runs first; only with the priority policy
    arrival_s: float = 0.0  # time.monotonic() of the front end, one machine
    cache_salt: str = ""


class FinishReason(enum.StrEnum):
    STOP = "stop"  # eos, a stop id, or a stop string found by the text side
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, natural log, before temperature and penalties."""

    token_id: int
    logprob: float
    rank: int  # 1 is the most likely
    top: list[tuple[int, float]]  # best first, as many as asked for


class RequestTimes(msgspec.Struct, frozen=True, array_like=True):
    """Marks on the engine's monotonic clock, for queue, prefill and decode histograms."""

    arrival_s: float
    scheduled_s: float
    first_token_s: float
    finished_s: float


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step added to one request. Exactly one output per request has a finish reason."""

    request_id: str
    new_token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None  # one per new token
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # once; None for the first token
    num_cached_tokens: int = 0  # prompt tokens served from the prefix cache, set on first output
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the id that ended it, if eos or a stop id did
    error: str | None = None  # with finish_reason ERROR
    error_code: str | None = None  # the ``code`` of core.errors that it would have raised
    times: RequestTimes | None = None  # with any finish reason
