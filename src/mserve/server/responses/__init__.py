"""The Responses API."""

from mserve.server.responses.endpoint import (
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    retrieve_response,
)

__all__ = [
    "cancel_response",
    "count_input_tokens",
    "create_response",
    "delete_response",
    "retrieve_response",
]
