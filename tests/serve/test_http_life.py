"""The server's life: loading, overload, clients that leave, engines that die, the way out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CRASH = 1  # a prompt with this token kills the scripted engine


@contextlib.contextmanager
def streaming(server: Any, **fields: Any) -> Iterator[Iterator[str]]:
    """An open stream whose first text has arrived; yields the rest of its lines."""
    body = {"prompt": "abc", "stream": True, "ignore_eos": True, **fields}
    with (
        httpx.Client(base_url=server.url, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        next(line for line in lines if line)
        yield lines


def payloads(lines: Iterator[str]) -> list[Any]:
    return [
        json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"
    ]


class Background:
    """A completion in a thread."""

    def __init__(self, server: Any, **fields: Any) -> None:
        self.response: httpx.Response | None = None

        def ask() -> None:
            body = {"prompt": "abc", **fields}
            self.response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=20)

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def join(self) -> httpx.Response:
        self._thread.join(20)
        assert self.response is not None
        return self.response


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def is_gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_the_port_listens_while_the_engine_loads(start_server: Callable[..., Any]) -> None:
    server = start_server({"load_s": 0.9}, wait=False)
    server.wait_for(lambda: server.http.get("/readyz").json()["percent"] == 50)
    for path in ("/readyz", "/health"):
        response = server.http.get(path)
        assert response.status_code == 503
        assert response.json()["status"] == "loading"
        assert response.json()["stage"] == "weights"
    assert server.http.get("/livez").status_code == 200
    assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] is None
    refused = server.complete("abc")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "not_ready"
    assert int(refused.headers["retry-after"]) > 0
    server.wait_ready()
    assert server.http.get("/health").json()["status"] == "ready"
    assert server.complete("abc", max_tokens=1).status_code == 200
    assert server.stop() == 0


def test_an_engine_that_refuses_to_start_ends_the_server(checkpoint: Path) -> None:
    setup = json.dumps({"script": {"fail_load": "config.json: no layers"}})
    result = subprocess.run(
        [sys.executable, "-m", "mserve.testing.scripted_server", str(checkpoint), setup],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert result.returncode == 2
    assert "error: config.json: no layers" in result.stderr
    assert "Traceback" not in result.stderr


def test_models(server: Any) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("scripted", "model", 256)
    assert server.http.get("/v1/models/scripted").json() == model
    assert server.http.get("/version").json().keys() == {"version"}
    assert server.http.get("/").json()["name"] == "mserve"
    head = server.http.head("/")
    assert (head.status_code, head.content) == (200, b"")
    named = server.http.get("/version", headers={"x-request-id": "mine"})
    assert named.headers["x-request-id"] == "mine"


def test_several_names_and_priority(start_server: Callable[..., Any]) -> None:
    names = ["m3", "org/MiniMax-M3"]
    server = start_server(server={"served_model_names": names, "policy": "priority"})
    assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == names
    assert server.http.get("/v1/models/org/MiniMax-M3").status_code == 200
    for name in names:
        answer = server.complete("a", model=name, max_tokens=1, priority=5)
        assert answer.json()["model"] == name
    assert server.complete("a", max_tokens=1).json()["model"] == "m3"
    assert server.stop() == 0


def test_keys(start_server: Callable[..., Any]) -> None:
    server = start_server(server={"api_keys": ["secret", "other"]})
    good: list[dict[str, str]] = [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer other"},
        {"x-api-key": "secret"},
    ]
    bad: list[dict[str, Any]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret"},
        {"authorization": "Bearer"},
        {"x-api-key": "secret2"},
        {"x-api-key": "sécret".encode()},
    ]
    paths = ["/v1/models", "/tokenize", "/metrics", "/", "/version", "/nowhere", "/v1/completions"]
    for path in paths:
        for headers in bad:
            response = server.http.get(path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.json()["error"]["type"] == "authentication_error"
        for headers in good:
            assert server.http.get(path, headers=headers).status_code != 401
    for path in ("/livez", "/readyz", "/health"):
        assert server.http.get(path).status_code == 200
    assert server.stop() == 0


def test_a_checkpoint_without_tokenizer(start_server: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    server = start_server(folder=folder)
    (choice,) = server.complete([5, 6], max_tokens=3, return_token_ids=True).json()["choices"]
    assert (choice["text"], choice["token_ids"]) == ("", [5, 6, 5])
    refused = server.complete("abc")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_tokenizer"
    assert server.chat("abc").json()["error"]["code"] == "no_chat_template"
    assert server.stop() == 0


@pytest.fixture
def slow_server(start_server: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    """Two rows, a queue of two, 50 ms per token; an abort is written to ``aborts``."""
    aborts = tmp_path / "aborts"
    aborts.touch()
    script = {
        "token_delay_s": 0.05,
        "max_num_seqs": 2,
        "max_waiting": 2,
        "abort_log": str(aborts),
        "crash_token_id": CRASH,
    }
    server = start_server(script, {"shutdown_timeout_s": 1.0})
    server.aborts = lambda: len(aborts.read_text().splitlines())
    yield server
    server.stop()


def test_a_client_that_leaves_is_aborted_wherever_it_was(slow_server: Any) -> None:
    def leave_stream() -> None:
        with streaming(slow_server):
            pass

    leave_stream()
    slow_server.wait_for(lambda: slow_server.aborts() == 1, 5)

    body = {"prompt": "abc", "ignore_eos": True, "n": 4}  # two run, two wait
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow_server.url}/v1/completions", json=body, timeout=0.3)
    slow_server.wait_for(lambda: slow_server.aborts() == 5, 5)

    slow_server.wait_for(lambda: slow_server.metric("vllm:num_requests_running") == 0)
    assert slow_server.metric("vllm:kv_cache_usage_perc") == 0
    assert slow_server.metric("vllm:request_success_total", finished_reason="abort") == 5
    assert slow_server.complete("abc", max_tokens=2).status_code == 200


def test_overload_is_refused_at_once_and_the_rest_finish(slow_server: Any) -> None:
    running = [Background(slow_server, max_tokens=10) for _ in range(4)]
    slow_server.wait_for(lambda: slow_server.metric("vllm:num_requests_waiting") == 2)
    refused = slow_server.complete("abc", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_overloaded"
    assert refused.json()["error"]["type"] == "overloaded_error"
    assert int(refused.headers["retry-after"]) > 0
    assert [request.join().status_code for request in running] == [200] * 4
    assert slow_server.metric("vllm:admission_rejections_total", reason="overloaded") == 1


def test_drain_finishes_what_runs_and_refuses_the_rest(slow_server: Any) -> None:
    whole = Background(slow_server, max_tokens=12)
    slow_server.wait_for(lambda: slow_server.metric("vllm:num_requests_running") == 1)
    with streaming(slow_server, max_tokens=12) as lines:
        slow_server.process.send_signal(signal.SIGTERM)
        slow_server.wait_for(lambda: slow_server.http.get("/readyz").status_code == 503, 2)
        assert slow_server.http.get("/readyz").json()["status"] == "draining"
        assert slow_server.http.get("/livez").status_code == 200
        refused = slow_server.complete("abc")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_shutting_down"
        assert "retry-after" in refused.headers
        last = payloads(lines)[-1]
    assert last["choices"][0]["finish_reason"] == "length"
    assert whole.join().json()["usage"]["completion_tokens"] == 12
    assert slow_server.process.wait(10) == 0


def test_the_drain_has_an_end(slow_server: Any) -> None:
    whole = Background(slow_server, ignore_eos=True)
    children = children_of(slow_server.process)
    with streaming(slow_server) as lines:
        slow_server.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert [line for line in rest if line][-1] == "data: [DONE]"
    assert payloads(iter(rest))[-1]["error"]["code"] == "server_shutting_down"
    assert whole.join().status_code == 503
    assert whole.join().json()["error"]["code"] == "server_shutting_down"
    assert slow_server.process.wait(10) == 0
    assert children
    assert all(is_gone(pid) for pid in children)


def test_a_second_signal_does_not_wait(slow_server: Any) -> None:
    with streaming(slow_server) as lines:
        slow_server.process.send_signal(signal.SIGINT)
        slow_server.wait_for(lambda: slow_server.http.get("/readyz").status_code == 503, 2)
        slow_server.process.send_signal(signal.SIGINT)
        assert payloads(lines)[-1]["error"]["code"] == "server_shutting_down"
    assert slow_server.process.wait(10) == 0


def test_a_dead_engine_is_replaced_behind_an_open_port(slow_server: Any) -> None:
    (old,) = children_of(slow_server.process)
    waiting = Background(slow_server, ignore_eos=True)
    with streaming(slow_server) as lines:
        slow_server.complete([CRASH])
        last = payloads(lines)[-1]
    assert last["error"]["code"] == "engine_restarting"
    assert last["error"]["type"] == "overloaded_error"
    response = waiting.join()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_restarting"
    assert slow_server.http.get("/readyz").json()["status"] == "restarting"
    refused = slow_server.complete("abc")
    assert refused.json()["error"]["code"] == "engine_restarting"
    slow_server.wait_ready()
    assert slow_server.complete("abc", max_tokens=2).json()["choices"][0]["text"] == "ab"
    assert slow_server.metric("mserve:engine_restarts_total") == 1
    assert is_gone(old)


def test_no_engine_outlives_its_server(slow_server: Any) -> None:
    (engine,) = children_of(slow_server.process)
    slow_server.process.kill()
    slow_server.process.wait(10)
    deadline = time.monotonic() + 10
    while not is_gone(engine):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_metrics_have_the_names_that_dashboards_query(server: Any) -> None:
    before = server.metric("vllm:request_success_total", finished_reason="stop")
    server.chat()
    assert server.metric("vllm:request_success_total", finished_reason="stop") == before + 1
    text = server.http.get("/metrics").text
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("num_preemptions_total", "prompt_tokens_total", "generation_tokens_total"),
        *("prefix_cache_queries_total", "prefix_cache_hits_total"),
        *("gpu_prefix_cache_queries_total", "gpu_prefix_cache_hits_total"),
        *("time_to_first_token_seconds_count", "inter_token_latency_seconds_count"),
        *("request_time_per_output_token_seconds_count", "e2e_request_latency_seconds_count"),
        *("request_queue_time_seconds_count", "request_prefill_time_seconds_count"),
        *("request_decode_time_seconds_count", "request_inference_time_seconds_count"),
        *("request_prompt_tokens_sum", "request_generation_tokens_sum"),
        *("request_params_n_sum", "request_params_max_tokens_count", "iteration_tokens_total_sum"),
    ):
        assert server.metric(f"vllm:{name}", model_name="scripted", engine="0") >= 0, name
    assert server.metric("vllm:cache_config_info", block_size="128") == 1
    assert "_created" not in text


def test_a_server_that_still_loads_can_be_stopped(start_server: Callable[..., Any]) -> None:
    server = start_server({"load_s": 30.0}, wait=False)
    server.wait_for(lambda: server.http.get("/readyz").json()["stage"] == "weights")
    children = children_of(server.process)
    assert server.stop() == 0
    assert children
    assert all(is_gone(pid) for pid in children)


def test_a_server_between_two_engines_can_be_stopped(slow_server: Any) -> None:
    slow_server.complete([CRASH])
    assert slow_server.http.get("/readyz").json()["status"] == "restarting"
    assert slow_server.stop() == 0
