"""Draws the learning curves of a run: `python -m demo.plot RUN/curve.jsonl OUT.svg`.

One small panel a skill: right answers on held-out examples over the tokens trained on. Plain SVG,
so that it needs no library and shows in the repository.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

_COLUMNS = 5
_WIDTH, _HEIGHT, _GAP, _TITLE = 150, 84, 26, 18
_TARGET = 0.95


def drawing(lines: list[dict[str, Any]]) -> str:
    """The SVG of ``lines``, records of ``demo.train``. A skill may have been added on the way."""
    skills = list(lines[-1]["held_out"])
    most = max(line["tokens"] for line in lines)
    rows = -(-len(skills) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + _GAP) + _GAP
    height = rows * (_HEIGHT + _GAP + _TITLE) + _GAP
    panels = [
        _panel(
            skill,
            [
                (line["tokens"] / most, line["held_out"][skill])
                for line in lines
                if skill in line["held_out"]
            ],
        )
        for skill in skills
    ]
    placed = []
    for number, panel in enumerate(panels):
        x = _GAP + number % _COLUMNS * (_WIDTH + _GAP)
        y = _GAP + number // _COLUMNS * (_HEIGHT + _GAP + _TITLE)
        placed.append(f'<g transform="translate({x} {y})">{panel}</g>')
    caption = (
        f"held-out answers right in %, dashed: 95; to the right: 0 to {most / 1e6:.1f} M tokens"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="#333">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{_GAP}" y="14">{caption}</text>{"".join(placed)}</svg>\n'
    )


def _panel(skill: str, points: list[tuple[float, float]]) -> str:
    line = " ".join(f"{_WIDTH * x:.1f},{_TITLE + _HEIGHT * (1 - y):.1f}" for x, y in points)
    target = _TITLE + _HEIGHT * (1 - _TARGET)
    last = f"{100 * points[-1][1]:.0f}"
    return (
        f'<text x="0" y="12">{escape(skill)}</text>'
        f'<text x="{_WIDTH}" y="12" text-anchor="end">{last}</text>'
        f'<rect y="{_TITLE}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#bbb"/>'
        f'<line y1="{target:.1f}" y2="{target:.1f}" x2="{_WIDTH}" stroke="#999" '
        f'stroke-dasharray="3 3"/>'
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.plot", description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.curve.read_text(encoding="utf-8").splitlines()]
    given.out.write_text(drawing(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
