"""The page at ``GET /``: what it may reach, and a chat with it in a browser if there is one."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process import InProcess

from mserve.toy import write_toy

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ANSWER = "I see.\n</think>\n\nLet me look."
CALL = (
    '\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)


class Elements(html.parser.HTMLParser):
    """Ids, and every address that an element loads or points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action", "srcset", "data"):
                self.addresses.append(value or "")


def test_browsers_get_a_page_and_others_json() -> None:
    page = InProcess("m2")

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("/", headers=HTML),
            await client.get("/"),
            await client.head("/"),
            await client.head("/", headers=HTML),
        ]

    html_, json_, head, html_head = page.ask(ask)
    assert html_.headers["content-type"] == "text/html; charset=utf-8"
    assert json_.json()["name"] == "mserve"
    assert head.status_code == html_head.status_code == 200
    assert head.content == html_head.content == b""


def test_the_page_needs_no_other_host() -> None:
    response = InProcess("m2").ask(lambda client: client.get("/", headers=HTML))
    elements = Elements(response.text)
    assert elements.addresses == ["data:,"]
    assert not re.search(r"https?://|//[a-z]+\.", response.text)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    used = set(re.findall(r'\$\("(\w+)"\)', response.text))
    assert used <= set(elements.ids)
    assert len(elements.ids) == len(set(elements.ids))


class Browser:
    """A headless browser, over the WebDriver protocol."""

    def __init__(self, url: str, profile: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments.append(f"--user-data-dir={profile}")
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._session = f"/session/{self._ask('POST', '/session', wanted)['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        response = self._http.request(method, path, json=body)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        body = {"script": script, "args": []}
        return self._ask("POST", f"{self._session}/execute/sync", body)

    def wait(self, script: str) -> Any:
        deadline = time.monotonic() + 30
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < deadline, f"{script} did not come true"
            time.sleep(0.1)
        return value

    def close(self) -> None:
        self._ask("DELETE", self._session)
        self._http.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs chromium and chromium-driver")
    process = subprocess.Popen(
        [driver, "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(rb"started successfully on port (\d+)", line):
                browser = Browser(f"http://127.0.0.1:{int(found[1])}", tmp_path / "profile")
                yield browser
                browser.close()
                break
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_a_chat_in_a_browser(
    browser: Browser, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    toy = tmp_path / "toy"
    write_toy(toy, arch="m2", vocab_size=1500)
    text = InProcess("m2", ANSWER + CALL)
    script = {
        "reply_token_ids": [*text.engine.reply, text.engine.eos],
        "eos_token_id": text.engine.eos,
        "vocab_size": 1500,
        "max_model_len": 2048,
        "num_cached_tokens": 7,
    }
    server = start_server(script, folder=toy, dialect="minimax_m2")
    browser.open(server.url + "/")
    browser.wait("document.getElementById('model').textContent === 'toy'")
    tools = '[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'
    browser.run(f"$('toggle').click(); $('tools').value = '{tools}'")
    browser.run("$('text').value = 'Hello'; $('form').requestSubmit()")
    browser.wait("$('chat').dataset.answers === '1'")
    assert browser.run("return document.querySelector('.user').textContent") == "Hello"
    thought = browser.run("return document.querySelector('.thought').textContent")
    assert thought == "I see."
    assert browser.run("return document.querySelector('details').open") is False
    said = browser.run("return document.querySelector('.words').textContent")
    assert said == "Let me look."
    called = browser.run("return document.querySelector('.call').textContent")
    assert called.replace(" ", "") == 'f{"x":1}'
    assert re.fullmatch(
        r"[\d.]+ tokens/s · \d+ out · \d+ in, 7 cached",
        browser.run("return $('numbers').textContent"),
    )
    # What is typed after a call is the tool's answer, and the history goes back whole.
    browser.run("$('text').value = 'sunny'; $('form').requestSubmit()")
    browser.wait("$('chat').dataset.answers === '2'")
    assert not browser.run("return document.querySelector('.error')?.textContent")
