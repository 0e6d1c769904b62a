"""``mserve chat``: a conversation in the terminal, with a server or with a checkpoint.

Knows the commands of the conversation and its history. Does not know HTTP (``chat_client``), how
answers look (``chat_screen``) or how a server is started (``chat_server``).
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mserve.checkpoint import DEMO, checkpoint_folder
from mserve.core import MserveError, SetupError

if TYPE_CHECKING:
    from rich.console import Console

    from mserve.cli.chat_client import ChatClient, Message
    from mserve.cli.chat_server import Server

DEFAULT_URL = "http://127.0.0.1:8000"
_FIND_S = 2.0

# What /set accepts, and how its value is read.
SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
}

HELP = """\
/help              this list
/reset             forget the conversation, keep the system message
/system [TEXT]     show or replace the system message
/set [NAME VALUE]  show or change a setting; the value `default` takes it back
/retry             ask the last question again
/save FILE         write the conversation as JSON
/exit              leave (or Ctrl-D)
A line ending in \\ goes on in the next; \"\"\" on its own opens and ends a longer message.
Ctrl-C stops the answer."""


def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            help="URL of a server, or a checkpoint folder to serve meanwhile; `demo` is a small "
            f"model that comes with mserve. Default: the server at {DEFAULT_URL}, "
            "or demo if there is none."
        ),
    ] = None,
    serve_flags: Annotated[
        list[str] | None, typer.Argument(help="After --: flags of `mserve serve` for a checkpoint.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this, print the answer and leave.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Served model name. Default: the server's first.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MSERVE_API_KEY", help="Key of the server.")
    ] = None,
) -> None:
    """Talk to a model. Without a terminal, stdin is one message."""
    from rich.console import Console

    from mserve.cli.chat_client import ChatClient

    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None and not message.strip():
        raise SetupError("there is no question", hint="give one with -m, or on stdin")
    settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(Console(stderr=True).status("waiting for the server"))

        def report(stage: str, fraction: float) -> None:
            status.update(f"loading: {stage} {fraction:.0%}")

        target, flags = target_of(target, serve_flags or [])
        server = server_of(target, flags, report, stack)
        client = stack.enter_context(ChatClient(server.url, api_key=api_key))
        client.wait_until_ready(report)
        name = model or first_model(client)
        status.stop()
        conversation = Conversation(
            client, name, system, settings, Console(highlight=False), server.check
        )
        if message is not None:
            conversation.ask(message)
        else:
            conversation.run()


def target_of(target: str | None, serve_flags: list[str]) -> tuple[str, list[str]]:
    """Whom to talk to, and the flags of a server that has to be started for it. Without a target
    and flags, the server on this machine; without that, the demo."""
    if target is not None and target.startswith("-"):  # what follows -- when there is no target
        target, serve_flags = None, [target, *serve_flags]
    if target is not None:
        return target, serve_flags
    if not serve_flags:
        if _serves(DEFAULT_URL):
            return DEFAULT_URL, []
        sys.stderr.write(f"no server at {DEFAULT_URL}: talking to the demo model\n")
    return DEMO, serve_flags


def _serves(url: str) -> bool:
    """Whether models are served there, be it to others than us. Keys are not shown to strangers."""
    import httpx

    try:
        answer = httpx.get(f"{url}/v1/models", timeout=_FIND_S)
    except httpx.TransportError:
        return False
    return answer.status_code in (httpx.codes.OK, httpx.codes.UNAUTHORIZED)


def server_of(
    target: str, serve_flags: list[str], report: Any, stack: contextlib.ExitStack
) -> Server:
    """The target if it is a URL; else a server started for that folder."""
    from mserve.cli.chat_server import Server, started

    if target.startswith(("http://", "https://")):
        if serve_flags:
            raise SetupError(
                "flags after -- are for a server that is started for a checkpoint",
                hint="give a checkpoint folder, or leave the flags out",
            )
        return Server(target)
    folder = checkpoint_folder(target)
    if not folder.is_dir():
        raise SetupError(
            f"{target} is neither a URL nor a checkpoint folder",
            hint=f"a URL looks like {DEFAULT_URL}",
        )
    return stack.enter_context(started(folder, serve_flags, report))


def first_model(client: ChatClient) -> str:
    names = client.models()
    if not names:
        raise SetupError(f"{client.base_url} serves no model")
    return names[0]


class Conversation:
    """Messages so far, and the loop that adds to them. ``check_server`` raises ``SetupError`` when
    there is no server any more to talk to."""

    def __init__(
        self,
        client: ChatClient,
        model: str,
        system: str | None,
        settings: dict[str, Any],
        console: Console,
        check_server: Callable[[], None] = lambda: None,
    ) -> None:
        self.client = client
        self.model = model
        self.system = system
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.console = console
        self.check_server = check_server
        self.turns: list[Message] = []

    def run(self) -> None:
        """Read and answer until /exit or the end of input."""
        import readline  # noqa: F401  arrow keys and history for input()

        from mserve.cli.chat_screen import read_message

        self.console.print(f"{self.model} at {self.client.base_url}. /help lists the commands.")
        while True:
            try:
                text = read_message().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.print("\n/exit or Ctrl-D leaves", style="dim")
                continue
            if text == "/exit":
                return
            try:
                self._obey(text) if text.startswith("/") else self.ask(text)
            except MserveError as error:
                self.check_server()
                self.console.print(f"error: {error.message}", style="red", markup=False)

    def ask(self, text: str) -> None:
        """Send one message and show the answer. An empty one is not sent."""
        if not text.strip():
            return
        self.turns.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except MserveError:
            self.turns.pop()  # so that the next question does not repeat what failed
            self.check_server()
            raise
        self.turns.append(answer)

    def _answer(self) -> Message:
        from mserve.cli.chat_client import Turn
        from mserve.cli.chat_screen import Answer, describe, warn

        stream = self.client.stream(self.model, self.messages(), self.settings)
        with Answer(self.console) as answer, contextlib.closing(stream):
            turn = None
            try:
                for part in stream:
                    if isinstance(part, Turn):
                        turn = part
                    else:
                        answer.add(part)
            except KeyboardInterrupt:
                if not self.console.is_terminal:
                    raise
        if self.console.is_terminal:
            self.console.print(describe(turn) if turn else "stopped", style="dim")
        elif turn and sys.stderr.isatty():
            warn(describe(turn))
        message = {"role": "assistant", "content": answer.text}
        # M3 was trained on histories that keep what it thought: sent back, as clients should.
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        return message

    def messages(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns

    def _obey(self, line: str) -> None:
        """Carry out one slash command."""
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        match verb:
            case "/help":
                self._say(HELP)
            case "/reset":
                self.turns.clear()
            case "/system":
                self.system = rest or self.system
                self._say(self.system or "no system message")
            case "/set":
                self._set(rest)
            case "/retry":
                self._retry()
            case "/save":
                self._save(rest)
            case _:
                self._say(f"{verb} is not a command; /help lists them")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _set(self, rest: str) -> None:
        if not rest:
            shown = [f"{name} = {self.settings.get(name, 'default')}" for name in SETTINGS]
            self._say("\n".join(shown))
            return
        name, _, value = rest.replace("=", " ").partition(" ")
        if name not in SETTINGS:
            self._say(f"{name} is not a setting; there are {', '.join(SETTINGS)}")
        elif value.strip() == "default":
            self.settings.pop(name, None)
        else:
            try:
                self.settings[name] = SETTINGS[name](value.strip())
            except ValueError:
                self._say(f"{name} takes a number, not {value.strip() or 'nothing'}")

    def _retry(self) -> None:
        if not self.turns:
            self._say("nothing was asked yet")
            return
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        self.ask(question)

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save needs a file name")
            return
        text = json.dumps({"model": self.model, "messages": self.messages()}, indent=2)
        try:
            Path(name).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            self._say(f"cannot write {name}: {error.strerror}")
        else:
            self._say(f"wrote {name}")
