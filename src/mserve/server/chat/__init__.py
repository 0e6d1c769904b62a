"""The Chat Completions API."""

from mserve.server.chat.endpoint import create_chat_completion
from mserve.server.chat.request import read_messages, text_of

__all__ = ["create_chat_completion", "read_messages", "text_of"]
