"""The HTTP front end: OpenAI's completions APIs over one engine process."""

from mserve.server.app import create_app
from mserve.server.run import listen, run_server
from mserve.server.service import (
    ServerConfig,
    Service,
    StatusListener,
    TextTools,
    load_text_tools,
)
from mserve.server.supervisor import Supervisor

__all__ = [
    "ServerConfig",
    "Service",
    "StatusListener",
    "Supervisor",
    "TextTools",
    "create_app",
    "listen",
    "load_text_tools",
    "run_server",
]
