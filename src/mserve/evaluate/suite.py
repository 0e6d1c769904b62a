"""Suites: what is asked and what an answer must be, one JSON object a line.

    {"request": {"messages": [...]}, "check": {"contains": ["Paris"]}, "part": "capital"}

``request`` is a body of ``/v1/chat/completions``, with whatever that takes. Shipped as files and
not made by code: the questions can be read, a test that changes shows in a diff, and anybody's
own file works as well. Knows files; does not know servers.
"""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mserve.core import SetupError

_SHIPPED = Path(__file__).parent / "suites"
_ENDINGS = (".jsonl", ".jsonl.xz")  # packed where long texts recur


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer must satisfy; a field that is left out asks nothing."""

    equals: str | None = None
    """The content, blanks around it aside."""
    contains: tuple[str, ...] = ()
    """Each within the content, and not as a part of a longer word or number."""
    absent: tuple[str, ...] = ()
    """None of them within the content, looked for in the same way."""
    json: Any = msgspec.UNSET
    """The content is JSON of this value."""
    calls: tuple[dict[str, Any], ...] | msgspec.UnsetType = msgspec.UNSET
    """These calls and no others, in any order: ``name``, ``arguments``."""
    thinks: bool | None = None
    """Whether there is any reasoning."""


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question. ``part`` names a group within the suite that is counted by itself."""

    request: dict[str, Any]
    check: Check
    part: str = ""


def suite_names() -> list[str]:
    """Of the suites that come with mserve."""
    return sorted(_name(path) for path in _SHIPPED.iterdir() if path.name.endswith(_ENDINGS))


def load_suite(name: str) -> tuple[str, list[Case]]:
    """A shipped suite by its name, or one's own by the path of its file: its name and cases.

    Raises ``SetupError`` with file and line for what is not a suite.
    """
    path = Path(name) if name.endswith(_ENDINGS) else _shipped(name)
    try:
        data = path.read_bytes()
        lines = (lzma.decompress(data) if path.suffix == ".xz" else data).split(b"\n")
    except (OSError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or "it is not xz"
        raise SetupError(f"cannot read the suite {path}: {reason}") from None
    cases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            cases.append(msgspec.json.decode(line, type=Case))
        except msgspec.DecodeError as error:
            raise SetupError(f"{path}, line {number}: {error}") from None
    if not cases:
        raise SetupError(f"the suite {path} is empty")
    return _name(path), cases


def load_suites(names: Iterable[str], limit: int | None) -> dict[str, dict[int, Case]]:
    """By name, the first ``limit`` cases of each part (``None``: all) by their places from 0.

    Raises ``SetupError`` as ``load_suite`` does, and for two suites of one name, since nothing
    could tell their scores apart.
    """
    suites: dict[str, dict[int, Case]] = {}
    for name, cases in map(load_suite, names):
        if name in suites:
            raise SetupError(f"--suite {name} is given twice", hint="rename one of the files")
        suites[name] = _first_places(cases, limit)
    return suites


def first_of_parts(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """The first ``limit`` of each part; ``None``: all."""
    return list(_first_places(cases, limit).values())


def _first_places(cases: Sequence[Case], limit: int | None) -> dict[int, Case]:
    taken: Counter[str] = Counter()
    kept = {}
    for place, case in enumerate(cases):
        taken[case.part] += 1
        if limit is None or taken[case.part] <= limit:
            kept[place] = case
    return kept


def _shipped(name: str) -> Path:
    for ending in _ENDINGS:
        if name in suite_names() and (path := _SHIPPED / (name + ending)).exists():
            return path
    raise SetupError(
        f"there is no suite {name}",
        hint=f"known are {', '.join(suite_names())}; the path of one's own ends in .jsonl",
    )


def _name(path: Path) -> str:
    return path.name.removesuffix(".xz").removesuffix(".jsonl")
