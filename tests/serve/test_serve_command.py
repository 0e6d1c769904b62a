"""``mserve serve`` over a real engine on a toy checkpoint, and the flags it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mserve.capacity import read_machine
from mserve.checkpoint import open_checkpoint
from mserve.cli.serve import url_host
from mserve.cli.serve_checks import check_fits, parse_bytes
from mserve.cli.start_display import StartDisplay
from mserve.core import CapacityError, EngineConfig, ModelConfig, ParallelConfig, SetupError
from mserve.toy import write_toy
from mserve.wire import EngineStatus, Loading, Phase, Ready

RUN = """
import sys, typer
from mserve.cli.serve import serve
from mserve.core import SetupError
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(serve)
try:
    app()
except SetupError as error:
    sys.stderr.write(f"{error.message}\\n{error.hint}\\n")
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "m3-tiny"
    write_toy(folder, preset="m3-tiny", arch="m3", seed=1, max_position_embeddings=1024)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", RUN, *arguments]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


@pytest.fixture(scope="module")
def real_server(toy: Path, make_server: Callable[..., Any]) -> Iterator[Any]:
    flags = ["--port", "0", "--kv-cache-memory-bytes", "32M", "--num-threads", "2"]
    limits = {"MSERVE_MAX_NUM_SEQS": "4", "MSERVE_MAX_MODEL_LEN": "512"}
    process = subprocess.Popen(
        command(str(toy), *flags), stdout=subprocess.PIPE, env=environment(**limits)
    )
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    server = make_server(process, int(line.partition(",")[0].rpartition(":")[2]))
    server.wait_ready(120)
    yield server
    assert server.stop() == 0


def test_stream_and_whole_are_the_same_greedy_text(real_server: Any) -> None:
    fields = {"max_tokens": 6, "temperature": 0, "return_token_ids": True, "model": "m3-tiny"}
    whole = real_server.chat("Hello", **fields).json()["choices"][0]
    text = real_server.chat("Hello", **fields, stream=True).text
    assert whole["message"]["content"]
    assert len(whole["token_ids"]) == 6
    pieces = [
        httpx.Response(200, text=line.removeprefix("data: ")).json()["choices"][0]
        for line in text.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(piece["delta"]["content"] for piece in pieces) == whole["message"]["content"]


def test_evaluation_shape_over_the_real_engine(real_server: Any) -> None:
    prompt = real_server.http.post("/tokenize", json={"prompt": "one two three"}).json()["tokens"]
    fields = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    logprobs = real_server.complete([prompt], **fields).json()["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(prompt) + 1
    assert logprobs["token_logprobs"][0] is None
    for value, top in list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[
        1:
    ]:
        assert value in top.values()
        assert value <= 0
    assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())


def test_clients_that_leave_free_their_blocks(real_server: Any) -> None:
    def leave() -> None:
        body = {"prompt": "x " * 200, "stream": True, "ignore_eos": True}
        url = f"{real_server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=30) as response:
            next(response.iter_lines())

    threads = [threading.Thread(target=leave) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    real_server.wait_for(lambda: real_server.metric("vllm:num_requests_running") == 0)
    assert real_server.metric("vllm:num_requests_waiting") == 0
    assert real_server.metric("vllm:kv_cache_usage_perc") == 0
    assert real_server.metric("vllm:request_success_total", finished_reason="abort") == 6
    again = real_server.complete("x " * 200, max_tokens=1).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= 128


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--block-size", "64"], "128 tokens"),
        (["--max-model-len", "4096"], "max_position_embeddings 1024"),
        (["--tensor-parallel-size", "3"], "num_attention_heads"),
        (["--kv-cache-memory-bytes", "lots"], "not an amount"),
        (["--kv-cache-memory-bytes", "1M", "--device", "cpu"], "use --max-model-len"),
        (["--gpu-memory-utilization", "1.5"], "share between 0 and 1"),
        (["--chat-template", "nowhere.jinja"], "nowhere.jinja"),
        (["--host", "256.0.0.1"], "cannot listen"),
        (["--port", "70000"], "Invalid value"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_flags_are_refused_before_anything_heavy(
    toy: Path, flags: list[str], words: str
) -> None:
    result = subprocess.run(
        command(str(toy), *flags), capture_output=True, text=True, timeout=30, env=environment()
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "flags", [["--tensor-parallel-size", "3"], ["--max-model-len", "4096"]], ids=" ".join
)
def test_generate_refuses_what_cannot_run_without_torch(
    toy: Path, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "in.json").write_text("[[1]]")
    files = ["--prompts", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.json")]
    script = (
        "import sys; from mserve.cli.main import run; code = run(sys.argv[1:])\n"
        "sys.exit(code if 'torch' not in sys.modules else 'torch was loaded')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "generate", str(toy), *files, *flags],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")


def test_a_port_in_use_is_named(toy: Path, real_server: Any) -> None:
    port = real_server.url.rpartition(":")[2]
    result = subprocess.run(
        command(str(toy), "--port", port),
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    ("text", "count"),
    [("123", 123), ("4G", 4 << 30), ("1.5gib", 3 << 29), ("2 MB", 2 << 20), (None, None)],
)
def test_amounts_of_memory(text: str | None, count: int | None) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "nan", "inf", "4X", "0"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(SetupError):
        parse_bytes(text)


def test_limits_of_the_checkpoint(toy: Path) -> None:
    spec = open_checkpoint(toy).spec

    def config(ranks: int = 1, length: int | None = None) -> EngineConfig:
        return EngineConfig(
            model=ModelConfig(path="x", max_model_len=length),
            parallel=ParallelConfig(tensor_parallel_size=ranks),
        )

    for has_gpu in (False, True):
        machine = msgspec.structs.replace(read_machine(), has_gpu=has_gpu)
        check_fits(spec, config(ranks=2, length=1024), machine)
        for bad in (config(ranks=spec.num_heads + 1), config(length=1025)):
            with pytest.raises(SetupError):
                check_fits(spec, bad, machine)
    poor = msgspec.structs.replace(read_machine(), has_gpu=False, available_bytes=1 << 20)
    with pytest.raises(CapacityError):
        check_fits(spec, config(), poor)
    check_fits(spec, config(), msgspec.structs.replace(poor, has_gpu=True))  # torch will tell


def test_addresses_that_can_be_typed() -> None:
    assert [url_host(host) for host in ("0.0.0.0", "::", "::1", "host")] == [
        *("127.0.0.1", "127.0.0.1", "[::1]", "host")
    ]


def test_start_lines_are_few_and_end_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    ready = Ready(
        max_model_len=512,
        vocab_size=100,
        num_blocks=10,
        max_num_seqs=4,
        max_waiting=1,
        report=[f"line {i}" for i in range(40)],
    )
    with StartDisplay("tiny", "http://127.0.0.1:1") as display:
        display.say("listening")
        planned = EngineStatus(loading=Loading("memory", 1.0, report=ready.report[:3]))
        display(planned, None)
        assert capsys.readouterr().out.splitlines()[1:] == ready.report[:3]
        for _ in range(2):  # a restarted engine is not announced again
            display(EngineStatus(Phase.READY), ready)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15 - 4
    assert lines[0] == "line 3"
    assert lines[-1].startswith("try: curl http://127.0.0.1:1/v1/chat/completions")
    assert "http://127.0.0.1:1/v1" in lines[-2]
    assert "context 512 tokens, 10 blocks (1,280 tokens)" in lines[-3]
