"""``demo`` is the model that comes with mserve, wherever one is asked for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mserve.checkpoint import DEMO, checkpoint_folder, open_checkpoint
from mserve.cli import chat


def test_demo_is_a_whole_checkpoint_in_the_package():
    folder = checkpoint_folder(DEMO)
    assert open_checkpoint(folder).spec.family == "m3"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40e6


def test_a_checkpoint_of_that_name_in_the_present_folder_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert checkpoint_folder("demo").parent.name == "mserve"  # no checkpoint yet
    Path("demo/config.json").write_text("{}")
    assert checkpoint_folder("demo") == Path("demo")
    assert checkpoint_folder("other") == Path("other")


def test_a_chat_without_a_target_looks_for_a_server_and_else_takes_the_demo(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(chat, "DEFAULT_URL", url)
        assert chat.target_of(None, []) == (url, [])
        assert chat.target_of(None, ["--port", "1"]) == (DEMO, ["--port", "1"])
    target, flags = chat.target_of(None, [])
    assert target == DEMO
    assert "--kv-cache-memory-bytes" in flags
    assert url in capsys.readouterr().err


@pytest.mark.parametrize("target", ["http://there:1", "somewhere"])
def test_a_target_that_is_named_is_taken(target: str):
    assert chat.target_of(target, ["--seed", "1"]) == (target, ["--seed", "1"])
