"""What a webhook is told, against servers of every kind; that nothing waits for it; that its address stays secret."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runtime import webhook
from runtime.exits import RunError, UsageError
from runtime.webhook import VARIABLE, Webhook

SECRET = "s3cret"


class Server:
    """A local server that records every request, and answers by `how`: a status, or "hang", "garbage", "close"."""

    def __init__(self, how: int | str = 204):
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.released = threading.Event()  # ends what hangs
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((self.requestline, dict(self.headers), body))
                if how == "hang":
                    outer.released.wait(30)
                elif how == "garbage":
                    self.wfile.write(f"{SECRET}, not HTTP\r\n\r\n".encode())
                elif isinstance(how, int):
                    self.send_response(how, f"as {self.path} says")
                    self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/{SECRET}?token={SECRET}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def lines(self) -> list[str]:
        return [json.loads(body)["text"] for _, _, body in self.requests]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, and stops them after the test."""
    servers: list[Server] = []

    def start_one(how: int | str = 204) -> Server:
        servers.append(Server(how))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_lines_come_in_order_as_slack_and_discord_read_them(start: Start) -> None:
    server = start()
    with Webhook(server.address, "first on gpu3:") as told:
        for number in range(20):
            told.send(f"line\n {number}")
        told.send("x" * 3_000)
    assert server.lines() == [
        *(f"first on gpu3: line {number}" for number in range(20)),
        f"first on gpu3: {'x' * 1985}",
    ]
    request, headers, body = server.requests[0]
    assert request == f"POST /{SECRET}?token={SECRET} HTTP/1.1"
    assert headers["Content-Type"] == "application/json"
    assert "urllib" not in headers["User-Agent"]  # Discord answers 403
    assert json.loads(body) == {"text": "first on gpu3: line 0", "content": "first on gpu3: line 0"}


def test_the_environment_may_give_the_address_and_the_flag_comes_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flag, by_environment = start(), start()
    for variable, address in (("", None), (by_environment.address, None), (by_environment.address, by_flag.address)):
        monkeypatch.setenv(VARIABLE, variable)
        with Webhook(address, "run:") as told:
            told.send(f"told {address is not None}")
    assert (by_environment.lines(), by_flag.lines()) == (["run: told False"], ["run: told True"])


@pytest.mark.parametrize(
    "address",
    [SECRET, f"ftp://host/{SECRET}"],
)
def test_an_invalid_address_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address)
    for given, name in ((address, "--webhook"), (None, VARIABLE)):
        with pytest.raises(UsageError, match=f"^{name} must be an address that begins with https://") as refusal:
            Webhook(given, "run:")
        assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        (500, "HTTP status 500"),
        ("hang", "TimeoutError"),
        ("garbage", "BadStatusLine"),
        ("port", "InvalidURL"),  # whose text has the address
        ("nobody", "ConnectionRefusedError"),
    ],
)
def test_a_server_that_does_not_take_messages_is_one_warning_and_holds_up_nobody(
    how: int | str, cause: str, start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "ANSWER_SECONDS", 0.3)
    server = start(how)
    address = f"https://host:{SECRET}/" if how == "port" else server.address
    if how == "nobody":
        server.close()
    began = time.monotonic()
    with Webhook(address, "run:") as told:
        for number in range(3):
            told.send(f"line {number}")
        assert time.monotonic() - began < 0.25  # less than a single answer may take
    output = capfd.readouterr()
    warning = f"The webhook did not accept a message ({cause}); training continues. This is reported once.\n"
    assert output.out + output.err == warning
    if isinstance(how, int):
        assert server.lines() == [f"run: line {number}" for number in range(3)]  # each was tried, and once


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("the loss\nis NaN"), "ended by RunError: the loss is NaN"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt:"),
        (UsageError("in use by another process"), None),
    ],
)
def test_what_ends_the_block_is_told(error: BaseException, line: str | None, start: Start) -> None:
    server = start()
    told = Webhook(server.address, "run:")
    told.send("begins")
    told.__exit__(type(error), error, None)
    assert server.lines() == ["run: begins", *([f"run: {line}"] if line else [])]


def test_a_server_that_hangs_does_not_keep_the_run_from_its_end(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "END_SECONDS", 0.3)
    began = time.monotonic()
    with Webhook(start("hang").address, "run:") as told:
        told.send("line")
    assert time.monotonic() - began < webhook.ANSWER_SECONDS
    assert "(no answer before the end)" in capfd.readouterr().out
