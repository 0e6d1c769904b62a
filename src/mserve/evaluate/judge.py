"""One answer against one check. Knows no suite and no server."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import msgspec

from mserve.evaluate.client import Answer
from mserve.evaluate.suite import Check

_SHOWN_CHARS = 200
# A sign (Chinese has a word for it), or digits and a mark that go on: -7, 1,7 and 0.7 are not 7.
_NUMBER_GOES_BACK = re.compile(r"(?:[-负負]|\d[.,]|(?<![\w.])\.)$")
_NUMBER_GOES_ON = re.compile(r"[.,]\d|[万亿萬億]")
# Scripts without blanks between words, by the names of their characters; Korean has blanks, but
# particles stand right behind a word.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER")


def judge(check: Check, answer: Answer) -> str | None:
    """``None`` if the answer satisfies the check, else the first thing that is wrong."""
    if answer.finish_reason == "length":
        return "the answer is cut off at its length limit"
    content = answer.content.strip()
    if check.equals is not None and content != check.equals.strip():
        return f"the content is not {_shown(check.equals)}"
    for text in check.contains:
        if not _holds(content, text):
            return f"the content lacks {_shown(text)}"
    for text in check.absent:
        if _holds(content, text):
            return f"the content has {_shown(text)}, too"
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
    """``text`` stands in ``content``, and nothing beside it makes another word or number of it."""
    content, text = _normal(content), _normal(text)
    starts = (match.start() for match in re.finditer(f"(?={re.escape(text)})", content))
    return any(
        _stands_alone(content[:start], text, content[start + len(text) :]) for start in starts
    )


def _normal(text: str) -> str:
    """One way of writing accents (one character), and one minus."""
    return unicodedata.normalize("NFC", text).replace("\N{MINUS SIGN}", "-")


def _stands_alone(before: str, text: str, after: str) -> bool:
    if re.match(r"[-+]?\.?\d", text) and _NUMBER_GOES_BACK.search(before[-2:]):
        return False
    if re.search(r"\d$", text) and _NUMBER_GOES_ON.match(after):
        return False
    has_mark = text[:1] in ("-", "+", ".") and text[1:2].isdigit()  # 9-7 does not hold -7
    return not (
        _is_one_word(before[-1:], "0" if has_mark else text[:1])
        or _is_one_word(text[-1:], after[:1])
    )


def _is_one_word(left: str, right: str) -> bool:
    """Neighbours are letters or digits, of any script whose words have blanks between them."""
    return all(
        _is_of_a_word(char) and not unicodedata.name(char, "").startswith(_UNSPACED)
        for char in (left, right)
    )


def _is_of_a_word(char: str) -> bool:
    """A letter, a digit, or a mark on one (no variation selector, which goes with emoji)."""
    is_mark = bool(char) and unicodedata.category(char) in ("Mn", "Mc")
    return char.isalnum() or (is_mark and not "\ufe00" <= char <= "\ufe0f")


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
