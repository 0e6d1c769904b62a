"""The real front end over the scripted engine, as a process: ``tests/serve`` talks to it.

    python -m mserve.testing.scripted_server CHECKPOINT '{"script": {...}, "server": {...}}'

Prints ``listening on PORT`` once it accepts connections.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import msgspec

from mserve.core import EngineConfig, ModelConfig, SetupError
from mserve.server import ServerConfig, Service, listen, load_text_tools, run_server
from mserve.testing.fake_engine import Script
from mserve.text import by_name


class Setup(msgspec.Struct, frozen=True):
    """What a test wants to differ from the defaults."""

    script: Script = Script()
    dialect: str | None = None  # by the parser's name
    server: dict[str, Any] = {}


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    checkpoint = Path(sys.argv[1])
    setup = msgspec.json.decode(sys.argv[2], type=Setup)
    values = {"served_model_names": (checkpoint.name,), **setup.server}
    dialect = None if setup.dialect is None else by_name(setup.dialect)
    end = setup.script.eos_token_id
    text = load_text_tools(checkpoint, dialect=dialect, eos_token_ids=() if end is None else (end,))
    service = Service(msgspec.convert(values, ServerConfig), text)
    listener = listen("127.0.0.1", 0)
    sys.stdout.write(f"listening on {listener.getsockname()[1]}\n")
    sys.stdout.flush()
    script = msgspec.json.encode(setup.script).decode()
    try:
        run_server(
            service,
            listener,
            EngineConfig(model=ModelConfig(path=str(checkpoint))),
            [sys.executable, "-m", "mserve.testing.fake_engine", script],
        )
    except SetupError as error:
        sys.stderr.write(f"error: {error.message}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
