"""Between strings and token ids: messages, template, tokenizer, stop strings, dialects."""

from mserve.text.answer import Answer, AnswerPiece, OutputParser, PlainParser
from mserve.text.detokenize import Detokenizer
from mserve.text.dialects import (
    Dialect,
    DialectParser,
    Start,
    State,
    ThinkingMode,
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
from mserve.text.messages import arguments_of, normalised, split_thinking
from mserve.text.stable_prefix import STABLE_PREFIX_RULES, KeptThinking, with_stable_prefix
from mserve.text.stop import StopScan, StopStrings
from mserve.text.template import (
    ChatTemplate,
    JinjaChatTemplate,
    NoChatTemplate,
    load_chat_template,
)
from mserve.text.thinking import THINKING_VARIABLES, ThinkingPlan, plan_thinking
from mserve.text.tokenizer import ByteLevelTokenizer, NoTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "STABLE_PREFIX_RULES",
    "THINKING_VARIABLES",
    "Answer",
    "AnswerPiece",
    "ArgumentsDelta",
    "ByteLevelTokenizer",
    "CallFinished",
    "CallStarted",
    "ChatTemplate",
    "ContentDelta",
    "Detokenizer",
    "Dialect",
    "DialectParser",
    "Event",
    "Finished",
    "GenerationDefaults",
    "JinjaChatTemplate",
    "KeptThinking",
    "NoChatTemplate",
    "NoTokenizer",
    "OutputParser",
    "PlainParser",
    "ReasoningDelta",
    "Start",
    "State",
    "StopScan",
    "StopStrings",
    "ThinkingMode",
    "ThinkingPlan",
    "Tokenizer",
    "Tools",
    "arguments_of",
    "by_name",
    "load_chat_template",
    "load_generation_defaults",
    "load_tokenizer",
    "marker_ids",
    "normalised",
    "of_family",
    "plan_thinking",
    "split_thinking",
    "with_stable_prefix",
]
