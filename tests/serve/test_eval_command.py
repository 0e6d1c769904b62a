"""``mserve eval`` as it is run: against a server that answers as it is told."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mserve.cli.chat_server import Server
from mserve.cli.evaluate import BELOW_A_FLOOR, UNANSWERED
from mserve.cli.main import INTERRUPTED, REFUSED, run
from mserve.core import SetupError
from mserve.evaluate import load_suite

Reply = Callable[[dict[str, Any]], Any]


class _Handler(BaseHTTPRequestHandler):
    """Says what ``reply`` makes of a question's last words; a number is the status of an error."""

    reply: Reply

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send({"data": [{"id": "scripted"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = type(self).reply(body)
        if isinstance(content, int):
            self._send({"error": {"message": f"refused with {content}"}}, content)
            return
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send({"choices": [choice], "usage": {"completion_tokens": 2}})

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[[Reply], str]]:
    """Start a server that answers with ``reply``; returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> str:
        handler = type("Handler", (_Handler,), {"reply": staticmethod(reply)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def last_words(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def suite_file(folder: Path, name: str, answers: dict[str, str]) -> str:
    path = folder / f"{name}.jsonl"
    lines = [
        json.dumps(
            {
                "request": {"messages": [{"role": "user", "content": question}]},
                "check": {"equals": answer},
                "part": answer[:1],
            }
        )
        for question, answer in answers.items()
    ]
    path.write_text("\n".join(lines))
    return str(path)


KNOWN = {"one": "a1", "two": "a2", "three": "b3", "four": "b4"}


def test_right_and_wrong_answers_are_counted_and_kept(
    answering: Callable[[Reply], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = answering(lambda body: {**KNOWN, "four": "b5"}[last_words(body)])
    mine, out = suite_file(tmp_path, "mine", KNOWN), tmp_path / "record.json"
    code = run(["eval", url, "--suite", mine, "--output", str(out), "--min", "mine=0.75"])
    assert code == 0
    shown = capsys.readouterr().out
    assert "mine: 0.75, at least 0.75 wanted: reached" in shown
    rows = {row.split()[0]: row.split()[1:] for row in shown.splitlines() if row.split()}
    assert rows["mine"][:3] == ["4", "75.0", "%"]
    assert rows["mine/a"][:3] == ["2", "100.0", "%"]
    assert rows["mine/b"][:3] == ["2", "50.0", "%"]
    record = json.loads(out.read_text())
    assert record["model"] == "scripted" and record["target"] == url
    assert record["completion_tokens"] == 8
    assert {name: score["rate"] for name, score in record["scores"].items()} == {
        "mine": 0.75,
        "mine/a": 1.0,
        "mine/b": 0.5,
    }
    assert [(one["number"], one["content"]) for one in record["wrong"]] == [(3, "b5")]


@pytest.mark.parametrize(
    ("floors", "code"),
    [
        (["mine=0.5"], 0),
        (["mine=0.51"], BELOW_A_FLOOR),
        (["mine=0.5", "mine/b=0.1"], BELOW_A_FLOOR),
        (["mine/a=1"], 0),
    ],
)
def test_the_exit_code_tells_whether_floors_are_reached(
    answering: Callable[[Reply], str], tmp_path: Path, floors: list[str], code: int
) -> None:
    url = answering(lambda body: KNOWN[last_words(body)].replace("b", "c"))
    mine = suite_file(tmp_path, "mine", KNOWN)
    flags = [word for floor in floors for word in ("--min", floor)]
    assert run(["eval", url, "--suite", mine, *flags]) == code


@pytest.mark.parametrize("floor", ["mine/a=1", "mine/b=0.1", "mine=0.9"])
def test_questions_without_an_answer_are_told_apart(
    answering: Callable[[Reply], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    floor: str,
) -> None:
    """Neither right nor wrong, and the exit code is their own, whatever floors say of the rest."""
    url = answering(lambda body: {**KNOWN, "three": 400, "four": 500}[last_words(body)])
    mine, out = suite_file(tmp_path, "mine", KNOWN), tmp_path / "record.json"
    flags = ["--suite", mine, "--output", str(out), "--min", floor]
    assert run(["eval", url, *flags]) == UNANSWERED
    shown = capsys.readouterr()
    assert "2 got no answer: refused with 400" in shown.err
    assert ("MISSED" in shown.out) == floor.startswith("mine/b")
    record = json.loads(out.read_text())
    assert record["wrong"] == [] and record["stopped"] is None
    assert [(one["number"], one["reason"]) for one in record["unanswered"]] == [
        (2, "refused with 400"),
        (3, "refused with 500"),
    ]
    assert {name: (one["rate"], one["num_cases"]) for name, one in record["scores"].items()} == {
        "mine": (1.0, 2),
        "mine/a": (1.0, 2),
        "mine/b": (None, 0),
    }


def test_the_end_of_a_server_of_ours_is_told(
    answering: Callable[[Reply], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def check() -> None:
        raise SetupError("signal 9 ended the server\nlast words")

    server = Server(answering(lambda body: {"one": "a1"}.get(last_words(body), 500)), check)
    monkeypatch.setattr("mserve.cli.chat.server_of", lambda *_: server)
    assert run(["eval", "mine/", "-s", suite_file(tmp_path, "mine", KNOWN)]) == UNANSWERED
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "3 got no answer: refused with 500",
        "signal 9 ended the server",
        "last words",
    ]


@pytest.mark.parametrize(
    ("end", "code", "stopped"),
    [
        (SetupError("no data"), REFUSED, "no data"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_what_was_answered_is_kept_whatever_ends_the_run(
    answering: Callable[[Reply], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: BaseException,
    code: int,
    stopped: str,
) -> None:
    def run_tasks(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr("mserve.evaluate.check_tasks", lambda tasks: None)
    monkeypatch.setattr("mserve.evaluate.run_tasks", run_tasks)
    url = answering(lambda body: KNOWN[last_words(body)])
    mine, out = suite_file(tmp_path, "mine", KNOWN), tmp_path / "record.json"
    assert run(["eval", url, "-s", mine, "--task", "gsm8k", "-o", str(out)]) == code
    record = json.loads(out.read_text())
    assert record["stopped"] == stopped
    assert record["scores"]["mine"]["rate"] == 1.0
    assert "mine/a" in capsys.readouterr().out


def test_a_limit_takes_the_first_of_each_part(
    answering: Callable[[Reply], str], tmp_path: Path
) -> None:
    """And records it under its place in the whole file."""
    asked: list[str] = []

    def reply(body: dict[str, Any]) -> str:
        asked.append(last_words(body))
        return ""

    mine, out = suite_file(tmp_path, "mine", KNOWN), tmp_path / "record.json"
    assert run(["eval", answering(reply), "-s", mine, "--limit", "1", "-o", str(out)]) == 0
    assert sorted(asked) == ["one", "three"]
    assert [one["number"] for one in json.loads(out.read_text())["wrong"]] == [0, 2]


def test_what_a_suite_asks_is_what_the_server_gets(answering: Callable[[Reply], str]) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> str:
        bodies.append(body)
        return ""

    url = answering(reply)
    assert run(["eval", url, "-s", "weather", "-s", "json", "--temperature", "0.5"]) == 0
    wanted = [
        {"temperature": 0.5, **case.request, "model": "scripted"}
        for name in ("weather", "json")
        for case in load_suite(name)[1]
    ]
    assert sorted(map(json.dumps, bodies)) == sorted(map(json.dumps, wanted))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a URL nor a checkpoint"),
        (["http://127.0.0.1:9"], "nothing answers"),
        (["http://127.0.0.1:9", "--suite", "fact"], "no suite fact"),
        (["http://127.0.0.1:9", "--min", "needles=0.9"], "that is not asked"),
        (["http://127.0.0.1:9", "-s", "facts", "--min", "needle=0.9"], "that is not asked"),
        (["http://127.0.0.1:9", "--min", "results/result=0.9"], "that is not asked"),
        (["http://127.0.0.1:9", "--min", "facts/=0.9"], "that is not asked"),
        (["http://127.0.0.1:9", "-s", "turns", "--min", "turns/nam=0"], "turns/name"),
        (["http://127.0.0.1:9", "--min", "needle"], "not understood"),
        (["http://127.0.0.1:9", "-s", "facts", "-s", "facts"], "facts is given twice"),
        (["http://127.0.0.1:9", "--output", "no/such/folder/x.json"], "not a folder"),
        (["http://127.0.0.1:9", "--concurrency", "0"], "greater than or equal to 1"),
    ],
)
def test_refusals_come_before_any_question(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *arguments]) == REFUSED
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("task", ["gsm8kk", "no/such/task.yaml"])
def test_a_task_that_is_not_known_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    task: str,
) -> None:
    """lm-eval itself is not needed: a stand-in lists the tasks."""
    own = tmp_path / "own.yaml"
    own.touch()
    tasks = ModuleType("lm_eval.tasks")
    tasks.TaskManager = lambda: SimpleNamespace(all_tasks=["gsm8k"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr("mserve.evaluate.harness.require_harness", lambda: None)
    known = ["--task", "gsm8k", "--task", str(own)]
    assert run(["eval", "http://127.0.0.1:9", *known, "--task", task]) == REFUSED
    assert f"lm-eval has no task {task}" in capsys.readouterr().err
    assert run(["eval", "http://127.0.0.1:9", *known]) == REFUSED
    assert "nothing answers" in capsys.readouterr().err


def test_two_suites_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        flags += ["-s", suite_file(folder, "mine", KNOWN)]
    assert run(["eval", "http://127.0.0.1:9", *flags]) == REFUSED
    assert "--suite mine is given twice" in capsys.readouterr().err


def test_a_floor_under_a_suite_is_checked_beside_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mserve.evaluate.check_tasks", lambda tasks: None)
    asked = ["-s", "facts", "--task", "gsm8k"]
    for floor, said in [("facts/x", "not asked"), ("gsm8k/exact_match", "nothing answers")]:
        assert run(["eval", "http://127.0.0.1:9", *asked, "--min", f"{floor}=0"]) == REFUSED
        assert said in capsys.readouterr().err


def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["eval", "http://127.0.0.1:9", "--task", "gsm8k"]) == REFUSED
    shown = capsys.readouterr().err
    assert "lm-eval, which is not installed" in shown and "pip install lm-eval" in shown
