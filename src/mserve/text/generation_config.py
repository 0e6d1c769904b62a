"""Sampling defaults and end-of-text ids from the checkpoint's ``generation_config.json``.

Knows the file's keys. Does not know requests: whoever builds ``SamplingParams`` lets a request's
own values win.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from mserve.core import CheckpointError


class GenerationDefaults(msgspec.Struct, frozen=True):
    """``None``: the checkpoint does not say, and the plain distribution applies."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        match self.eos_token_id:
            case None:
                return ()
            case int(token_id):
                return (token_id,)
            case token_ids:
                return tuple(token_ids)

    def sampling_values(self) -> dict[str, float | int]:
        """By the names of ``SamplingParams``, only what the file sets."""
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        return {name: value for name, value in values.items() if value is not None}


def load_generation_defaults(checkpoint: Path) -> GenerationDefaults:
    """Empty when the file is absent. Raises ``CheckpointError`` when it cannot be understood."""
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return GenerationDefaults()
    try:
        return msgspec.json.decode(path.read_bytes(), type=GenerationDefaults)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}", hint="correct the file or remove it") from None
