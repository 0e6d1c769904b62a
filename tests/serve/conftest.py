"""The real server process tree on loopback, over the scripted engine and a tiny tokenizer."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.processors
from in_process import close_grammars

EOS = 256
TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if message.content == 'refuse me' -%}\n"
    "{{ raise_exception('as you wish') }}\n"
    "{%- endif -%}\n"
    "[{{ message.role }}]{{ message.content }}<end>\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}[ai]{{ mood or '' }}{%- endif -%}\n"
)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One token per byte with ids 0 to 255 in byte order, then three merges, then specials."""
    alphabet = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    rest = [b for b in range(256) if b not in alphabet.values()]
    alphabet |= {chr(256 + i): b for i, b in enumerate(rest)}
    vocab = {**alphabet, "<end>": EOS, "he": 257, "ll": 258, "hell": 259}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[("h", "e"), ("l", "l"), ("he", "ll")])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<end>", special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the front end reads of a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "scripted"
    folder.mkdir()
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 1.0, "top_p": 0.95, "eos_token_id": EOS})
    )
    return folder


@pytest.fixture(scope="session", autouse=True)
def end_of_grammar_processes() -> Iterator[None]:
    yield
    close_grammars()


@pytest.fixture(scope="session")
def makefile_values() -> Callable[[str, str], list[str]]:
    """What a task of the Makefile gives for a flag of ``mserve``, in its order."""

    def values(task: str, flag: str) -> list[str]:
        if shutil.which("make") is None:
            pytest.skip("needs make")
        outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", task],
            cwd=Path(__file__).parents[2],
            env={name: value for name, value in os.environ.items() if name not in outer},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.replace("\\\n", " ").splitlines()
        words = [word for line in lines if "/mserve " in line for word in shlex.split(line)]
        return [value for name, value in itertools.pairwise(words) if name == flag]

    return values


class Server:
    """A running server process; ``url`` is where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        self.wait_for(lambda: self.http.get("/readyz").status_code == 200, timeout_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Poll until true. A test that hangs is worse than one that fails."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the server did not get there in time"
            time.sleep(0.02)

    def metric(self, name: str, **labels: str) -> float:
        """Value of one series of /metrics; labels that are not given may have any value."""
        for line in self.http.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(
                f'{label}="{wanted}"' in head for label, wanted in labels.items()
            ):
                return float(value)
        raise AssertionError(f"/metrics has no {name} {labels}")

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def stop(self) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture(scope="session")
def start_server(checkpoint: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the session. ``script`` and ``server`` override defaults."""
    servers: list[Server] = []

    def start(
        script: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        *,
        folder: Path = checkpoint,
        dialect: str | None = None,
        wait: bool = True,
    ) -> Server:
        setup = json.dumps({"script": script or {}, "server": server or {}, "dialect": dialect})
        process = subprocess.Popen(
            [sys.executable, "-m", "mserve.testing.scripted_server", str(folder), setup],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("listening on "), f"the server did not start: {line!r}"
        started = Server(process, int(line.split()[-1]))
        servers.append(started)
        if wait:
            started.wait_ready()
        return started

    yield start
    for started in servers:
        started.stop()


@pytest.fixture(scope="session")
def make_server() -> type[Server]:
    """Wraps a server process that a test has started itself."""
    return Server


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """One server for all tests that leave it as they found it."""
    return start_server({"eos_token_id": EOS, "num_cached_tokens": 2, "error_token_id": 127})
