"""How a chat looks: answers as they stream, and reading a message of several lines.

On a terminal an answer is shown as Markdown, block by block: the block that still grows is redrawn
in place, a finished one is printed for good, so the cost of a redraw never grows with the answer.
Elsewhere the text is written as it comes. Knows the terminal; does not know HTTP.
"""

from __future__ import annotations

import sys
from types import TracebackType

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from mserve.cli.chat_client import Piece, Turn

_FENCE = "```"
_QUOTES = '"""'
_PARSER = MarkdownIt(options_update={"html": False})
_PARSER.enable(["strikethrough", "table"]).disable("autolink")


class Answer:
    """Shows the pieces of one answer; ``text`` is what the model said, ``reasoning`` what it
    thought."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain = not console.is_terminal
        self._block = ""
        self._thinking = False
        self._live = Live(console=console, transient=True, refresh_per_second=12)
        self.text = self.reasoning = ""

    def __enter__(self) -> Answer:
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._plain:
            if self.text and not self.text.endswith("\n"):
                self._console.file.write("\n")
            self._console.file.flush()
            return
        self._live.update("")
        self._live.stop()
        self._print_block(self._block)

    def add(self, piece: Piece) -> None:
        if piece.thinking:
            self.reasoning += piece.text
        else:
            self.text += piece.text
        if self._plain:
            if not piece.thinking:
                self._console.file.write(piece.text)
                self._console.file.flush()
            return
        if piece.thinking != self._thinking:
            self._print_block(self._block)
            self._block, self._thinking = "", piece.thinking
        finished, self._block = split_blocks(self._block + visible(piece.text))
        self._print_block(finished)
        self._live.update(self._rendered(self._block))

    def _print_block(self, block: str) -> None:
        if block.strip():
            self._console.print(self._rendered(block))

    def _rendered(self, block: str) -> Markdown | Text:
        return Text(block, style="dim italic") if self._thinking else _markdown(block)


def visible(text: str) -> str:
    """``text`` without the power to move the cursor: what a model says is only ever shown."""
    return text.replace("\x1b", "\u241b")


def _markdown(text: str) -> Markdown:
    """Markdown in which tags are text: ``<think>`` is something said, not HTML to be left out."""
    shown = Markdown("")
    shown.parsed = _PARSER.parse(text)
    return shown


def split_blocks(text: str) -> tuple[str, str]:
    """(whole Markdown blocks, the block that still grows). A blank line ends a block, except
    inside a code fence."""
    cut = 0
    inside_fence = False
    position = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        if line.lstrip().startswith(_FENCE):
            inside_fence = not inside_fence
        elif not line.strip() and line.endswith("\n") and not inside_fence:
            cut = position
    return text[:cut], text[cut:]


def describe(turn: Turn) -> str:
    """One line on what an answer cost."""
    parts = [f"{turn.completion_tokens} tokens"]
    if turn.tokens_per_s is not None:
        parts.append(f"{turn.tokens_per_s:.1f} tokens/s")
    parts.append(f"first after {turn.first_token_s:.2f} s")
    parts.append(f"prompt {turn.prompt_tokens} ({turn.cached_tokens} cached)")
    if turn.finish_reason == "length":
        parts.append("cut at the length limit")
    return " · ".join(parts)


def read_message(prompt: str = "> ") -> str:
    """One message from the keyboard. A line that ends in a backslash goes on in the next; a line
    of three quotes opens a message that ends with another such line. Raises ``EOFError`` at the
    end of input."""
    line = input(prompt)
    if line.strip() == _QUOTES:
        return "\n".join(iter(lambda: input("… "), _QUOTES))
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = input("… ")
    return "\n".join([*lines, line])


def warn(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201
