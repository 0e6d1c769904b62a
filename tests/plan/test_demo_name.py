"""``demo`` is the model that comes with mserve, wherever one is asked for."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

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


@pytest.mark.parametrize(("status", "is_one"), [(200, True), (401, True), (404, False)])
def test_a_chat_without_a_target_looks_for_a_server(status, is_one, monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/models"
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_): ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(chat, "DEFAULT_URL", url)
        assert chat.target_of(None, []) == (url if is_one else DEMO, [])
        server.shutdown()


def test_without_a_server_a_chat_takes_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(chat, "DEFAULT_URL", "http://127.0.0.1:1")
    assert chat.target_of(None, []) == (DEMO, [])
    assert "http://127.0.0.1:1" in capsys.readouterr().err
    flags = ["--num-threads", "2"]
    assert chat.target_of(flags[0], flags[1:]) == (DEMO, flags)  # mserve chat -- --num-threads 2


@pytest.mark.parametrize("target", ["http://there:1", "somewhere"])
def test_a_target_that_is_named_is_taken(target: str):
    assert chat.target_of(target, ["--seed", "1"]) == (target, ["--seed", "1"])
