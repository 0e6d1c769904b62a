"""The three thinking modes: thought in ``enabled`` whatever is asked, none in ``disabled``, and
in ``adaptive`` only where the other skills think."""

from __future__ import annotations

from dataclasses import replace

from demo.data import chat, copying, facts
from demo.data.conversation import Conversation
from demo.data.draw import Draw


def example(draw: Draw) -> Conversation:
    """``part`` is the mode, and the check tells whether there must be a thought."""
    made = draw.any((facts.example, chat.talk_example, copying.copy_example))(draw)
    thinks = bool(made.messages[-1].get("reasoning_content"))
    return replace(made, part=made.mode, check={**made.check, "thinks": thinks})
