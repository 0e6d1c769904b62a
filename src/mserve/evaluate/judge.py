"""One answer against one check. Knows no suite and no server."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from mserve.evaluate.client import Answer
from mserve.evaluate.suite import Check

_SHOWN_CHARS = 200


def judge(check: Check, answer: Answer) -> str | None:
    """``None`` if the answer satisfies the check, else the first thing that is wrong."""
    content = answer.content.strip()
    if check.equals is not None and content != check.equals.strip():
        return f"the content is not {_shown(check.equals)}"
    for text in check.contains:
        if not _holds(content, text):
            return f"the content lacks {_shown(text)}"
    if check.json is not msgspec.UNSET and not _is_json(content, check.json):
        return f"the content is not the JSON {_shown(_canonical(check.json))}"
    if check.calls is not msgspec.UNSET:
        wanted = sorted(map(_canonical, check.calls))
        if sorted(map(_canonical, answer.calls)) != wanted:
            return f"the calls are not {_shown(', '.join(wanted) or 'none')}"
    if check.thinks is not None and bool(answer.reasoning.strip()) != check.thinks:
        return "there is no reasoning" if check.thinks else "there is reasoning"
    return None


def _holds(content: str, text: str) -> bool:
    """``text`` stands in ``content``, and no letter or digit of the Latin script that would make
    another word or number of it stands right beside."""
    before = r"(?<![A-Za-z0-9])" if text[:1].isascii() and text[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if text[-1:].isascii() and text[-1:].isalnum() else ""
    return re.search(before + re.escape(text) + after, content) is not None


def _is_json(content: str, value: Any) -> bool:
    try:
        return _canonical(json.loads(content)) == _canonical(value)
    except ValueError:
        return False


def _canonical(value: Any) -> str:
    """Text that differs whenever two JSON values do: ``true`` is not 1, and 1 is not 1.0."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
