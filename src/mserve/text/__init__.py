"""Between strings and token ids: template, tokenizer, streaming detokenizer, stop strings."""

from mserve.text.answer import Answer, AnswerPiece, Delta, OutputParser, PlainParser
from mserve.text.detokenize import Detokenizer
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
    "ByteLevelTokenizer",
    "ChatTemplate",
    "Delta",
    "Detokenizer",
    "JinjaChatTemplate",
    "NoChatTemplate",
    "NoTokenizer",
    "OutputParser",
    "PlainParser",
    "StopScan",
    "StopStrings",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
]
