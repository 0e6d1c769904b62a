"""The command line as a user meets it: help, refusals and exit codes."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from mserve import __version__
from mserve.cli.generate import check_writable, read_prompts, write_completions
from mserve.cli.main import FAILED, REFUSED, app, explain, run, with_dashes
from mserve.cli.serve import choose_dialect
from mserve.core import EngineError, QueueFullError, RequestError, SetupError

COMMANDS = ("serve", "chat", "generate", "toy", "quantize", "doctor", "eval")
HEAVY = ("torch", "numpy", "tokenizers", "starlette", "uvicorn", "jinja2", "zmq", "httpx")
THIS = str(Path(__file__))  # a file that exists and is not JSON


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from mserve.cli.main import run; code = run(sys.argv[2:]);"
        "print('loaded', [name for name in sys.argv[1].split() if name in sys.modules]);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, " ".join(HEAVY), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: mserve" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_toy_has_a_flag_for_every_size() -> None:
    from mserve.cli.toy import toy
    from mserve.toy import ToyShape

    flags = set(inspect.signature(toy).parameters) - {"out", "arch", "preset", "seed"}
    assert flags == set(ToyShape.__struct_fields__)


@pytest.mark.parametrize(
    ("family", "tool_call_parser", "reasoning_parser", "chosen"),
    [
        ("m2", None, None, "minimax_m2"),
        ("m2", "minimax_m2", "minimax_m2_append_think", "minimax_m2_append_think"),
        ("m2", "minimax-m2", "minimax-append-think", "minimax_m2_append_think"),
        ("m3", "minimax_m3", "minimax_m3", "minimax_m3"),
        ("m3", "minimax-m3", None, "minimax_m3"),
        ("m3", "minimax_m2", None, None),
        ("m2", None, "minimax_m3", None),
        ("m3", "hermes", None, None),
    ],
)
def test_parsers_by_the_names_users_type(
    family: Literal["m2", "m3"],
    tool_call_parser: str | None,
    reasoning_parser: str | None,
    chosen: str | None,
) -> None:
    if chosen is not None:
        assert choose_dialect(family, tool_call_parser, reasoning_parser).name == chosen
        return
    with pytest.raises(SetupError) as caught:
        choose_dialect(family, tool_call_parser, reasoning_parser)
    assert caught.value.hint


def test_option_names_may_have_underscores() -> None:
    given = ["serve", "a_b", "--max_model_len=1_0", "--enable_expert_parallel", "-x_y"]
    wanted = ["serve", "a_b", "--max-model-len=1_0", "--enable-expert-parallel", "-x_y"]
    assert with_dashes(given) == wanted


def flags_of_recipes() -> dict[str, str]:
    """Flag -> what docs/coming-from.md says of it today."""
    text = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `--")]
    return {flag: today for first, *_, today in rows for flag in re.findall(r"`(--[^`]+)`", first)}


@pytest.mark.parametrize(("flag", "today"), flags_of_recipes().items())
def test_the_table_of_recipe_flags_is_true(flag: str, today: str) -> None:
    parameters = typer.main.get_command(app).commands["serve"].params
    options = [name for one in parameters for name in (*one.opts, *one.secondary_opts)]
    assert today in ("works", "accepted", "planned")
    assert (flag in options) == (today != "planned")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mserve {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--wrong"], "--wrong"),
        (["sevre"], "sevre"),
        (["serve"], "Missing"),
        (["serve", "no/such/folder"], "no/such/folder"),
        (["serve", "no/such/folder", "--wrong"], "--wrong"),
        (["chat", "no/such/folder", "-m", "hi"], "no/such/folder"),
        (["chat", "http://127.0.0.1:1", "-m", "hi"], "127.0.0.1:1"),
        (["chat", "http://127.0.0.1:1", "-m", " "], "question"),
        (["chat", "http://127.0.0.1:1", "-m", "hi", "--", "--dtype", "float32"], "--"),
        (["generate", "no/such/folder", "--prompts", THIS, "--output", "y"], "no/such/folder"),
        (["generate", ".", "--prompts", "no.json", "--output", "y"], "no.json"),
        (["generate", ".", "--prompts", THIS, "--output", "y", "--dtype", "int3"], "int3"),
        (["generate", ".", "--prompts", THIS, "--output", "y"], "not JSON"),
        (["toy", "out", "--arch", "m9"], "m9"),
        (["toy", "out", "--seed", "many"], "--seed"),
        (["toy", str(Path(__file__).parent)], "empty folder"),
        (["quantize", "no/such/folder", "out", "--format", "fp8"], "no/such/folder"),
        (["quantize", ".", "out", "--format", "fp4"], "fp4"),
        (["quantize", ".", "out"], "--format"),
        (["serve", ".", "--quantization", "awq"], "awq"),
        (["serve", ".", "--kv-cache-dtype", "fp4"], "fp4"),
        (["doctor", "--jsno"], "--jsno"),
    ],
)
def test_a_mistake_is_refused_in_a_few_lines(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == REFUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert named in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) <= 5


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SetupError("no", hint="yes"), REFUSED, "hint: yes"),
        (RequestError("too big"), REFUSED, "error: too big"),
        (QueueFullError("full"), REFUSED, "error: full"),
        (EngineError("broke"), FAILED, "error: broke"),
        (ZeroDivisionError("division\nby zero"), FAILED, "ZeroDivisionError: division"),
    ],
)
def test_an_error_becomes_an_exit_code(error: Exception, code: int, line: str) -> None:
    got, lines = explain(error)
    assert got == code
    assert any(line in shown for shown in lines)
    assert len(lines) <= 2


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(SetupError):
        run(["--debug", "chat", "no/such/folder", "-m", "hi"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1,", "line 1, column"),
        ("[\n'a']", "line 2, column 1"),
        ("{}", "JSON list"),
        ("[]", "JSON list"),
        ('["a", ""]', "prompt 1 is an empty text"),
        ('["a", []]', "prompt 1 is an empty list"),
        ('["a", null]', "prompt 1 is null"),
        ("[[1, 2, -3]]", "prompt 0 holds -3 at position 2"),
        ("[[1, 2.5]]", "prompt 0 holds a fraction at position 1"),
        ("[[1, true]]", "prompt 0 holds a boolean at position 1"),
        ('[[1, "b"]]', "prompt 0 holds a text at position 1"),
        ("[7]", "prompt 0 is a number"),
    ],
)
def test_bad_prompts_are_named_by_position(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        read_prompts(path)
    assert named in caught.value.message


def test_prompts_of_other_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(b'["\xff"]')
    with pytest.raises(SetupError, match="not UTF-8"):
        read_prompts(path)


PROMPTS = st.lists(st.text(min_size=1) | st.lists(st.integers(0, 1 << 20), min_size=1), min_size=1)


@given(prompts=PROMPTS)
def test_good_prompts_are_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str | list[int]]
) -> None:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(prompts))
    assert read_prompts(path) == prompts


def test_a_place_that_takes_no_file_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="/proc cannot be written to"):
        check_writable(Path("/proc/answers.json"))  # not even by root
    with pytest.raises(SetupError, match="is not a folder"):
        check_writable(tmp_path / "gone" / "answers.json")
    check_writable(tmp_path / "answers.json")
    assert list(tmp_path.iterdir()) == []


def test_answers_replace_the_file_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write_completions(path, [object()])  # type: ignore[list-item]
    assert path.read_text() == "old"
    write_completions(path, [])
    assert json.loads(path.read_text()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["answers.json"]
