"""Logits to tokens, each request by its own rules and its own randomness."""

from mserve.sampler.logprobs import score
from mserve.sampler.penalties import (
    Allowed,
    Bias,
    Forbidden,
    Forced,
    LogitEdit,
    Penalties,
    TokenCounts,
)
from mserve.sampler.sample import Sampled, SamplingInputs, sample

__all__ = [
    "Allowed",
    "Bias",
    "Forbidden",
    "Forced",
    "LogitEdit",
    "Penalties",
    "Sampled",
    "SamplingInputs",
    "TokenCounts",
    "sample",
    "score",
]
