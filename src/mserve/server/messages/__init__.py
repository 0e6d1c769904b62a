"""The Anthropic Messages API."""

from mserve.server.messages.endpoint import count_tokens, create_message

__all__ = ["count_tokens", "create_message"]
