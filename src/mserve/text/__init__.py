"""Between strings and token ids: template, tokenizer, streaming detokenizer, stop strings."""

from mserve.text.answer import Answer, AnswerPiece, Delta, OutputParser, PlainParser
from mserve.text.detokenize import Detokenizer
from mserve.text.dialects import (
    Dialect,
    DialectParser,
    Start,
    State,
    Tools,
    by_name,
    marker_ids,
    of_family,
)
from mserve.text.events import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    ReasoningDelta,
)
from mserve.text.generation_config import GenerationDefaults, load_generation_defaults
from mserve.text.stop import StopScan, StopStrings
from mserve.text.template import (
    ChatTemplate,
    JinjaChatTemplate,
    NoChatTemplate,
    load_chat_template,
)
from mserve.text.tokenizer import ByteLevelTokenizer, NoTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "Answer",
    "AnswerPiece",
    "ArgumentsDelta",
    "ByteLevelTokenizer",
    "CallFinished",
    "CallStarted",
    "ChatTemplate",
    "ContentDelta",
    "Delta",
    "Detokenizer",
    "Dialect",
    "DialectParser",
    "Event",
    "Finished",
    "GenerationDefaults",
    "JinjaChatTemplate",
    "NoChatTemplate",
    "NoTokenizer",
    "OutputParser",
    "PlainParser",
    "ReasoningDelta",
    "Start",
    "State",
    "StopScan",
    "StopStrings",
    "Tokenizer",
    "Tools",
    "by_name",
    "load_chat_template",
    "load_generation_defaults",
    "load_tokenizer",
    "marker_ids",
    "of_family",
]
