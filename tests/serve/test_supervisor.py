"""The supervisor without HTTP: what it leaves behind."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from mserve.core import EngineConfig, ModelConfig, SamplingParams
from mserve.server import ServerConfig, Service, Supervisor, TextTools
from mserve.text import NoChatTemplate, NoTokenizer

LEAVES_FILES = "import tempfile, time; tempfile.mkdtemp(prefix='left-'); time.sleep(60)"


def test_a_killed_engine_leaves_no_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, as sockets need one
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    text = TextTools(NoTokenizer(), NoChatTemplate(), SamplingParams())
    service = Service(ServerConfig(served_model_names=("none",)), text)
    config = EngineConfig(model=ModelConfig(path="nowhere"))
    supervisor = Supervisor(service, [sys.executable, "-c", LEAVES_FILES], config)

    async def scenario() -> None:
        running = asyncio.create_task(supervisor.run())
        async with asyncio.timeout(20):
            while not list(place.rglob("left-*")):
                await asyncio.sleep(0.01)
        await supervisor.stop()
        await running

    try:
        asyncio.run(scenario())
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)
