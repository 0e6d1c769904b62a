"""Reads config.json key by key: every key with its type, its default and what we rely on.

A key that is read the wrong way gives wrong text, not a crash, so nothing is guessed: a wrong
type, an absent key without a default and a value we do not implement are each refused with file,
key, value found and value supported. Knows JSON values; does not know what a key means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from mserve.core import CheckpointError

Json = Any  # what msgspec decodes; each method below narrows it
T = TypeVar("T")
_SHOWN_CHARS = 60


class Keys:
    """One object of config.json. ``null`` counts as absent, as writers of the format mean it."""

    def __init__(self, file: Path, values: Mapping[str, Json], prefix: str = "") -> None:
        self._file = file
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        """An integer of at least ``at_least``; required when there is no default."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            self.refuse(key, f"an integer of at least {at_least}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A positive number, or zero where ``zero`` allows; required when there is no default."""
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (value > 0 or (zero and value == 0)):
            self.refuse(key, "a number of at least 0" if zero else "a positive number")
        return float(value)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """A list of ``count`` integers, for example one flag per layer."""
        value = self._value(key, None)
        if not _is_list(value, int) or len(value) != count:
            self.refuse(key, f"a list of {count} integers")
        return tuple(value)

    def choice(self, key: str, supported: Mapping[str, T]) -> T:
        """One word, translated by ``supported``."""
        value = self._value(key, None)
        if not isinstance(value, str) or value not in supported:
            self.refuse(key, " or ".join(map(json.dumps, supported)))
        return supported[value]

    def names(self, key: str, count: int, supported: Mapping[str, T]) -> tuple[T, ...]:
        """A list of ``count`` words, each translated by ``supported``."""
        value = self._value(key, None)
        if not _is_list(value, str) or len(value) != count:
            self.refuse(key, f"a list of {count} names")
        for word in value:
            if word not in supported:
                self.refuse(key, " or ".join(map(json.dumps, supported)), found=word)
        return tuple(supported[word] for word in value)

    def words(self, key: str) -> dict[str, str]:
        """An object whose values are all words."""
        value = self._value(key, None)
        if not isinstance(value, dict) or not _is_list(list(value.values()), str):
            self.refuse(key, "an object of names")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One id below ``vocab_size``, a list of them, or nothing."""
        value = self._values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not _is_list(ids, int) or not all(0 <= token_id < vocab_size for token_id in ids):
            self.refuse(key, f"token ids below the vocabulary size {vocab_size}")
        return tuple(ids)

    def section(self, key: str) -> Keys | None:
        """A nested object, or None when absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Keys(self._file, value, f"{self._prefix}{key}.")

    def expect(self, key: str, *supported: Json) -> None:
        """Refuse a value that is none of ``supported``; an absent key means the first."""
        value = self._values.get(key)
        if value is not None and not any(_equal(value, one) for one in supported):
            self.refuse(key, " or ".join(map(json.dumps, supported)))

    def expect_all(self, key: str, supported: int, count: int) -> None:
        """Refuse a list per layer in which any of ``count`` entries is not ``supported``."""
        if key in self and set(self.integers(key, count)) != {supported}:
            self.refuse(key, f"{supported} for every layer")

    def refuse(
        self, key: str, supported: str, *, found: Json = None, hint: str | None = None
    ) -> NoReturn:
        """Raise ``CheckpointError`` for a key: what was found, what is supported."""
        if key not in self:
            message = f"{self._file}: {self._prefix}{key} is missing, expected {supported}"
        else:
            value = self._values[key] if found is None else found
            message = (
                f"{self._file}: {self._prefix}{key} is {_shown(value)}, supported: {supported}"
            )
        raise CheckpointError(message, hint=hint)

    def _value(self, key: str, default: Json) -> Json:
        value = self._values.get(key)
        return default if value is None else value


def read_json(file: Path) -> Keys:
    """The object in ``file``; ``CheckpointError`` if it cannot be read or is no object."""
    try:
        values = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist", hint="give the folder of a downloaded checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file}: not valid JSON: {error}", hint="download the file again"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return Keys(file, values)


def _equal(value: Json, supported: Json) -> bool:
    """Equality that tells ``true`` from ``1``."""
    return value == supported and isinstance(value, bool) == isinstance(supported, bool)


def _is_list(value: Json, kind: type) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )


def _shown(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
