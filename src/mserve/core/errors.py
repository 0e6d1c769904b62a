"""Every error that mserve raises on purpose, with the HTTP status it becomes.

    MserveError                     code, status, param, message
    ├── RequestError           400  the caller can fix it by changing the request
    │   ├── ContextLengthError 400  prompt, or prompt + max_tokens, exceeds the context
    │   └── NotFoundError      404  a model, route or stored object that is not here
    ├── OverloadedError        503  try again later (Retry-After)
    │   ├── QueueFullError     503  as many run and wait as may
    │   └── NotReadyError      503  loading, draining or restarting
    ├── EngineError            500  our fault; the request is over, the server lives
    └── SetupError             n/a  bad checkpoint, flag or machine at start: exit code 2
        ├── CheckpointError         a file of the checkpoint; names file and key
        └── CapacityError           does not fit; names what would

Knows names and statuses. Does not know HTTP envelopes (``server``) or exit handling (``cli``).
"""

from __future__ import annotations


class MserveError(Exception):
    """Base of all deliberate errors. ``code`` is a stable slug that clients may match on."""

    code = "internal_error"
    status = 500

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class RequestError(MserveError):
    code = "invalid_request"
    status = 400


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class NotFoundError(RequestError):
    code = "not_found"
    status = 404


class OverloadedError(MserveError):
    """``retry_after_s`` becomes the Retry-After header."""

    code = "server_overloaded"
    status = 503
    retry_after_s = 1


class QueueFullError(OverloadedError):
    pass


class NotReadyError(OverloadedError):
    code = "not_ready"
    retry_after_s = 5


class EngineError(MserveError):
    code = "engine_error"


class SetupError(MserveError):
    """Refused at start. ``hint`` says what to change; both are printed, nothing else is."""

    code = "setup_error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(SetupError):
    code = "checkpoint_error"


class CapacityError(SetupError):
    code = "capacity_error"
