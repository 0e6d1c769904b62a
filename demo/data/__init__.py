"""What the demo model is taught and tested on, made from a seed.

    ids, mask = training_sample(random.Random(0), max_tokens=512)

One file a skill. ``draw`` keeps what tests ask apart from what is taught; ``render`` makes token
ids as the server does; ``mixture`` says how much of each. Nothing is read from anywhere else.
"""

from demo.data.conversation import Conversation
from demo.data.mixture import (
    SKILLS,
    held_out_conversation,
    long_sample,
    training_sample,
    word_tokens,
)
from demo.data.render import Sample, blank_twins, prompt_of, sample_of, template, tokenizer

__all__ = [
    "SKILLS",
    "Conversation",
    "Sample",
    "blank_twins",
    "held_out_conversation",
    "long_sample",
    "prompt_of",
    "sample_of",
    "template",
    "tokenizer",
    "training_sample",
    "word_tokens",
]
