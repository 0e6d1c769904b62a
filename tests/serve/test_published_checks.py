"""The checks that published deployment guides tell their readers to run, as they are written
there but for the address: health, a first question, a tool call, the OpenAI client.

The model is scripted, since a toy's random weights call no tools; names are those of the guides.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess

from mserve.toy import write_toy

HEALTH = """\
curl -s -o /dev/null -w "Status: %{http_code}\\n" "http://localhost:8000/health"
"""
FIRST_QUESTION_M3 = """\
curl http://localhost:8000/v1/chat/completions \\
-H "Content-Type: application/json" \\
-d '{
"model": "MiniMaxAI/MiniMax-M3",
"messages": [
{"role": "user", "content": "What is the capital of France?"}
],
"max_tokens": 256,
"temperature": 0
}'
"""
FIRST_QUESTION_M2 = """\
curl http://localhost:8000/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{
        "model": "MiniMaxAI/MiniMax-M2.5",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
            {"role": "user", "content": [{"type": "text", "text": "Who won the world series in 2020?"}]}
        ]
    }'
"""  # noqa: E501
GREETING_M2 = """\
curl http://localhost:8000/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "MiniMax-M2.7",
    "messages": [{"role": "user", "content": "Hello, who are you?"}],
    "stream": false,
    "temperature": 0.8,
    "max_tokens": 200
  }'
"""
TOOL_CALL_M2 = """\
curl http://localhost:8000/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "MiniMax-M2.7",
    "messages": [{"role": "user", "content": "请查询上海的天气。"}],
    "tools": [{
      "type": "function",
      "function": {
        "name": "get_current_weather",
        "description": "Get weather by city",
        "parameters": {
          "type": "object",
          "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}
          },
          "required": ["city"]
        }
      }
    }],
    "tool_choice": "auto",
    "temperature": 0,
    "max_tokens": 512
  }'
"""
OPENAI_CLIENT = """\
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="na")

resp = client.chat.completions.create(
    model="MiniMax-M2.7",
    messages=[{"role": "user", "content": "你好,请介绍一下你自己,并展示一次工具调用的参数格式。"}],
    max_tokens=256,
)
print(resp.choices[0].message.content)
"""

ANSWERS = {
    "m2": (
        "The user asks.\n</think>\n\nOf course.\n<minimax:tool_call>\n"
        '<invoke name="get_current_weather">\n<parameter name="city">上海</parameter>\n'
        '<parameter name="unit">celsius</parameter>\n</invoke>\n</minimax:tool_call>'
    ),
    "m3": "<mm:think>A simple question.</mm:think>The capital of France is **Paris**.",
}
NAMES = {
    "m2": ["MiniMax-M2.7", "MiniMaxAI/MiniMax-M2.5"],
    "m3": ["MiniMaxAI/MiniMax-M3"],
}


@pytest.fixture(scope="module")
def servers(
    start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    made = {}
    for arch, answer in ANSWERS.items():
        folder: Path = tmp_path_factory.mktemp("toys") / arch
        write_toy(folder, arch=arch, vocab_size=1500)
        engine = InProcess(arch, answer).engine
        script = {
            "reply_token_ids": [*engine.reply, engine.eos],
            "eos_token_id": engine.eos,
            "vocab_size": 1500,
            "max_model_len": 2048,
        }
        names = {"served_model_names": NAMES[arch]}
        made[arch] = start_server(script, names, folder=folder, dialect=f"minimax_{arch}")
    return made


def address_of(server: Any) -> str:
    return str(server.url).removeprefix("http://")


def curl(server: Any, line: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    line = line.replace("localhost:8000", address_of(server)).replace("curl", "curl -sS", 1)
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


def message_of(answer: str) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(answer)["choices"][0]["message"]
    return message


def test_health(servers: dict[str, Any]) -> None:
    assert curl(servers["m3"], HEALTH) == "Status: 200\n"


def test_first_question_to_m3(servers: dict[str, Any]) -> None:
    message = message_of(curl(servers["m3"], FIRST_QUESTION_M3))
    assert message["content"] == "The capital of France is **Paris**."
    assert message["reasoning_content"] == "A simple question."


@pytest.mark.parametrize("line", [FIRST_QUESTION_M2, GREETING_M2], ids=["M2.5", "M2.7"])
def test_first_question_to_m2(servers: dict[str, Any], line: str) -> None:
    message = message_of(curl(servers["m2"], line))
    assert message["reasoning_content"] == "The user asks."
    assert message["content"].startswith("Of course.")


def test_tool_call(servers: dict[str, Any]) -> None:
    message = message_of(curl(servers["m2"], TOOL_CALL_M2))
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_current_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "上海", "unit": "celsius"}
    assert message["content"] == "Of course."


def test_make_serve_demo_answers_to_the_names_of_the_guides(
    start_server: Callable[..., Any],
    makefile_values: Callable[[str, str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    names = makefile_values("serve-demo", "--served-model-name")
    assert names[0] == "demo"
    folder = tmp_path_factory.mktemp("toys") / "demo"
    write_toy(folder, arch="m3", vocab_size=1500)
    server = start_server(
        {"vocab_size": 1500, "max_model_len": 2048},
        {"served_model_names": names},
        folder=folder,
        dialect="minimax_m3",
    )
    for line in (FIRST_QUESTION_M3, FIRST_QUESTION_M2, GREETING_M2, TOOL_CALL_M2):
        body = line.partition("-d '")[2].rpartition("'")[0].encode()
        headers = {"Content-Type": "application/json"}
        reply = server.http.post("/v1/chat/completions", content=body, headers=headers)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == json.loads(body)["model"]


def test_openai_client(servers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    script = OPENAI_CLIENT.replace("127.0.0.1:8000", address_of(servers["m2"]))
    namespace: dict[str, Any] = {}
    exec(script, namespace)
    namespace["client"].close()
    assert capsys.readouterr().out.startswith("Of course.")
