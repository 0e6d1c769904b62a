"""Sums, differences and products of small numbers, worked out digit by digit in the thinking.

    347 + 585    ones 7 + 5 = 12. tens 4 + 8 + 1 = 13. hundreds 3 + 5 + 1 = 9. 932

The names of the places tell which digits a step takes, so that no step needs more than its own
line. Without thinking only a number below 100 and one below 10 are added. Tests ask for pairs of
numbers that were not taught.
"""

from __future__ import annotations

from demo.data.conversation import MODES, Conversation, assistant, user
from demo.data.draw import Draw

PLACES = ("ones", "tens", "hundreds", "thousands")

_ASKED = {
    "+": ("What is {a} + {b}?", "{a} + {b} = ?", "{a} + {b}", "Compute {a} + {b}.",
          "Add {a} and {b}.", "What is {a} plus {b}?", "How much is {a} + {b}?",
          "How much is {a} plus {b}?", "Can you tell me what {a} + {b} is?",
          "Tell me what {a} + {b} is.", "Please tell me what {a} + {b} is."),
    "-": ("What is {a} - {b}?", "{a} - {b} = ?", "{a} - {b}", "Compute {a} - {b}.",
          "Subtract {b} from {a}.", "What is {a} minus {b}?", "How much is {a} - {b}?",
          "How much is {a} minus {b}?", "Can you tell me what {a} - {b} is?",
          "Tell me what {a} - {b} is.", "Please tell me what {a} - {b} is."),
    "x": ("What is {a} x {b}?", "{a} x {b} = ?", "{a} x {b}", "Compute {a} x {b}.",
          "Multiply {a} by {b}.", "What is {a} times {b}?", "How much is {a} x {b}?",
          "How much is {a} times {b}?", "Can you tell me what {a} x {b} is?",
          "Tell me what {a} x {b} is.", "Please tell me what {a} x {b} is."),
}  # fmt: skip


def example(draw: Draw) -> Conversation:
    mode = draw.any(MODES)
    sign, a, b = small_problem(draw) if mode == "disabled" else problem(draw)
    thought = "" if mode == "disabled" else worked(sign, a, b)
    result = value(sign, a, b)
    return Conversation(
        messages=[
            user(draw.phrase(_ASKED[sign]).format(a=a, b=b)),
            assistant(f"{a} {sign} {b} = {result}.", thinking=thought),
        ],
        mode=mode,
        part={"+": "sum", "-": "difference", "x": "product"}[sign],
        check={"contains": [str(result)], "thinks": mode != "disabled"},
    )


def problem(draw: Draw) -> tuple[str, int, int]:
    """A sign and two numbers: of up to three digits, or one of up to three times one of one."""
    sign = draw.any("++--x")
    if sign == "x":
        return sign, *draw.own(lambda: (_sized(draw, 3), draw.number(2, 9)))
    if sign == "+":
        return sign, *draw.own(lambda: (_sized(draw, 3), _sized(draw, 3)))
    b, a = draw.own(lambda: tuple(sorted((_sized(draw, 3), _sized(draw, 3)))))
    return sign, a, b


def small_problem(draw: Draw) -> tuple[str, int, int]:
    return "+", *draw.own(lambda: (draw.number(10, 99), draw.number(1, 9)))


def value(sign: str, a: int, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def worked(sign: str, a: int, b: int) -> str:
    """The steps from the ones up, and the result."""
    steps = {"+": _sum_steps, "-": _difference_steps, "x": _product_steps}[sign](a, b)
    named = [f"{place} {step}." for place, step in zip(PLACES, steps, strict=False)]
    return f"{a} {sign} {b}: {' '.join(named)} {value(sign, a, b)}"


def _sum_steps(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = _digit(a, place), _digit(b, place)
        total = x + y + carry
        steps.append(f"{x} + {y}{f' + {carry}' if carry else ''} = {total}")
        carry = total // 10
    return steps


def _difference_steps(a: int, b: int) -> list[str]:
    """``13 - 8`` where one was borrowed; the lender then is one less."""
    steps, borrowed = [], 0
    for place in range(len(str(a))):
        x, y = _digit(a, place), _digit(b, place)
        lent = 10 if x - borrowed < y else 0
        steps.append(
            f"{x + lent} - {y}{f' - {borrowed}' if borrowed else ''} = {x + lent - y - borrowed}"
        )
        borrowed = lent // 10
    return steps


def _product_steps(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    for place in range(len(str(a))):
        x = _digit(a, place)
        total = x * b + carry
        steps.append(f"{x} x {b}{f' + {carry}' if carry else ''} = {total}")
        carry = total // 10
    return steps


def _digit(number: int, place: int) -> int:
    return number // int(10**place) % 10


def _sized(draw: Draw, max_digits: int) -> int:
    """Every number of digits alike often."""
    digits = draw.number(1, max_digits)
    return draw.number(10 ** (digits - 1), 10**digits - 1)
