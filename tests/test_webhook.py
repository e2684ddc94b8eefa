"""What a webhook is told, against servers of every kind; that nothing waits for it; that its address stays secret."""

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from runtime import webhook
from runtime.exits import RunError, UsageError
from runtime.flags import check_types, parse
from runtime.webhook import VARIABLE, Webhook

SECRET = "s3cret"


class Server:
    """A local server that records every request, and answers by `how`: a status, or "hang", "garbage", "close"."""

    def __init__(self, how: int | str = 204):
        self.how = how
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.released = threading.Event()  # ends what hangs
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests.append((self.requestline, dict(self.headers), self._body()))
                if outer.how == "hang":
                    outer.released.wait(30)
                elif outer.how == "garbage":
                    self.wfile.write(f"{SECRET}, not HTTP\r\n\r\n".encode())
                elif isinstance(outer.how, int):
                    self.send_response(outer.how, f"as {self.path} says")
                    self.send_header("Location", self.path)
                    self.end_headers()

            def do_GET(self) -> None:
                self.do_POST()

            def do_CONNECT(self) -> None:
                self.do_POST()
                self.close_connection = False  # what comes through the tunnel is seen, too

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.address = f"http://{self.host}/{SECRET}?token={SECRET}"
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
    """Starts servers, and stops them behind the test."""
    servers: list[Server] = []

    def start_one(how: int | str = 204) -> Server:
        servers.append(Server(how))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ANSWER_SECONDS", 0.2)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "webhook"]


def test_lines_come_in_order_as_slack_and_discord_read_them(start: Start) -> None:
    server = start()
    with Webhook(server.address, "first on gpu3:") as told:
        for number in range(20):
            told.send(f"line {number}")
    assert server.lines() == [f"first on gpu3: line {number}" for number in range(20)]
    request, headers, body = server.requests[0]
    assert request == f"POST /{SECRET}?token={SECRET} HTTP/1.1"
    assert headers["Content-Type"] == "application/json"
    assert "urllib" not in headers["User-Agent"]  # Discord answers 403
    assert json.loads(body) == {"text": "first on gpu3: line 0", "content": "first on gpu3: line 0"}
    assert not threads()


def test_a_message_is_one_line_and_no_longer_than_discord_takes(start: Start) -> None:
    server = start()
    with Webhook(server.address, "run:") as told:
        told.send("a\nb  \udcff ü")
        told.send("x" * 3_000)
    assert server.lines() == ["run: a b \udcff ü", "run: " + "x" * 1_995]


def test_without_an_address_there_is_no_thread_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv(VARIABLE, value)
        with Webhook(None, "run:") as told:
            told.send("nobody hears it")
            assert not threads()
            assert told._lines.empty()


def test_the_environment_may_give_the_address_and_the_flag_comes_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_flag, by_environment = start(), start()
    monkeypatch.setenv(VARIABLE, by_environment.address)
    for address in (None, by_flag.address):
        with Webhook(address, "run:") as told:
            told.send(f"told {address is not None}")
    assert (by_environment.lines(), by_flag.lines()) == (["run: told False"], ["run: told True"])


@pytest.mark.parametrize(
    "address",
    [
        "",
        SECRET,
        f"ftp://host/{SECRET}",
        f"file:///{SECRET}",
        f"https:///{SECRET}",
        f"https://host:{SECRET}/",
        "https://host:0/s3cret",
        "https://host:99999/s3cret",
        f"https://[{SECRET}/",
        f"https://host..{SECRET}/",
        f"https://{SECRET * 20}/",
        f"https://user:{SECRET}@host/",
        f"https://host/{SECRET} ",
        f"https://host/\n{SECRET}",
        f"https://host/ü{SECRET}",
    ],
)
def test_what_is_no_web_address_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address)
    for given, name in ((address, "--webhook"), *([(None, VARIABLE)] if address else [])):
        with pytest.raises(UsageError, match=f"^{name} is no https:// or http:// address") as refusal:
            Webhook(given, "run:")
        assert (refusal.value.__context__, refusal.value.__cause__) == (None, None)
        assert SECRET not in str(refusal.value)
    assert not threads()


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        (500, "HTTP status 500"),
        (404, "HTTP status 404"),
        (302, "HTTP status 302"),  # a loop, were it followed
        (307, "HTTP status 307"),
        ("hang", "TimeoutError"),
        ("garbage", "BadStatusLine"),
        ("close", "RemoteDisconnected"),
        ("tls", "SSLError"),
        ("nobody", "Connection refused"),
    ],
)
def test_a_server_that_does_not_take_messages_is_one_warning_and_holds_up_nobody(
    how: int | str, cause: str, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    server = start(how)
    address = server.address.replace("http:", "https:") if how == "tls" else server.address
    if how == "nobody":
        server.close()
    began = time.monotonic()
    with Webhook(address, "run:") as told:
        for number in range(3):
            told.send(f"line {number}")
        assert time.monotonic() - began < 0.15  # less than a single answer may take
    output = capfd.readouterr()
    warning = f"The webhook did not take a message ({cause}); the run goes on without it; said once.\n"
    assert output.out + output.err == warning
    assert SECRET not in repr(told)
    if isinstance(how, int):
        assert server.lines() == [f"run: line {number}" for number in range(3)]  # each was tried, and once
        assert {line.split()[0] for line, _, _ in server.requests} == {"POST"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        OSError(SECRET),
        urllib.error.URLError(SECRET),
        urllib.error.URLError(OSError(f"Tunnel connection failed: 403 {SECRET}")),
        urllib.error.URLError(ssl.SSLError(1, f"certificate is not valid for '{SECRET}'")),
        UnicodeEncodeError("ascii", SECRET, 0, 1, SECRET),
        urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    ],
)
def test_no_error_of_the_library_is_repeated(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr("urllib.request.OpenerDirector.open", fail)
    with Webhook(f"https://{SECRET}.example/{SECRET}", "run:") as told:
        told.send("line")
    output = capfd.readouterr()
    assert output.out.count("\n") == 1
    assert SECRET not in output.out
    assert not output.err
    assert ("Name or service not known" in output.out) == ("Name" in str(error))


def test_a_proxy_learns_the_host_of_an_https_address_and_no_more(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = start(200)
    monkeypatch.setenv("https_proxy", f"http://user:{SECRET}@{proxy.host}")
    with Webhook(f"https://chat.example/{SECRET}", "run:") as told:
        for number in range(4):
            told.send(f"line {number}")
    assert [request for request, _, _ in proxy.requests] == ["CONNECT chat.example:443 HTTP/1.0"] * 4
    output = capfd.readouterr()
    assert output.out.count("\n") == 1
    assert SECRET not in output.out + output.err


def test_a_server_that_comes_back_is_told_again(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    server = start(503)
    with Webhook(server.address, "run:") as told:
        told.send("lost")
        while not capfd.readouterr().out:
            time.sleep(0.01)
        server.how = 200
        told.send("heard")
    assert server.lines() == ["run: lost", "run: heard"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RunError("the loss is no finite number\nany more"),
            "failed (RunError): the loss is no finite number any more",
        ),
        (MemoryError("too much"), "failed (MemoryError): too much"),
        (KeyboardInterrupt(), "stopped at once"),
        (UsageError("in use by another process"), None),
    ],
)
def test_what_ends_the_block_is_told_and_goes_on_up(error: BaseException, line: str | None, start: Start) -> None:
    server = start()
    told = Webhook(server.address, "run:")

    def work() -> None:
        with told:
            told.send("begins")
            raise error

    with pytest.raises(type(error)) as raised:
        work()
    assert raised.value is error
    assert SECRET not in "".join(traceback.format_exception(error))
    assert server.lines() == ["run: begins", *([f"run: {line}"] if line else [])]
    assert not threads()


def test_the_end_waits_for_what_is_unsent_but_not_for_long(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(webhook, "END_SECONDS", 0.3)
    server = start("hang")
    began = time.monotonic()
    with Webhook(server.address, "run:") as told:
        told.send("line")
    assert 0.3 <= time.monotonic() - began < 1
    server.released.set()
    for thread in threads():
        thread.join(5)
    output = capfd.readouterr()
    assert output.out.count("\n") == 1  # the error that came behind the end is not said any more
    assert "(no answer before the end)" in output.out
    assert not output.err


def test_no_warning_is_still_being_printed_when_the_block_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, ending while another thread prints, dies of it."""
    printing, printed = threading.Event(), []

    def write(line: str) -> None:
        printing.set()
        time.sleep(0.3)
        printed.append(line)

    monkeypatch.setattr(webhook, "END_SECONDS", 0.1)
    monkeypatch.setattr("runtime.webhook.tqdm.write", write)
    with Webhook("http://127.0.0.1:9/", "run:") as told:  # nobody is there
        told.send("line")
        assert printing.wait(5)
    assert len(printed) == 1


ENDING = """
import sys
from runtime.exits import exit_with
from runtime import webhook
webhook.ANSWER_SECONDS, webhook.END_SECONDS = 60.0, float(sys.argv[2])
def main():
    with webhook.Webhook(sys.argv[1], "run:") as told:
        told.send("line")
        print("waits", flush=True)
exit_with(main)
"""


@pytest.mark.parametrize(("end_seconds", "interrupts"), [("0.3", False), ("60", True)])
def test_a_process_ends_though_the_server_hangs_and_ctrl_c_ends_its_wait(
    end_seconds: str, interrupts: bool, start: Start
) -> None:
    server = start("hang")
    command = [sys.executable, "-c", ENDING, server.address, end_seconds]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "waits\n"
    while not server.requests:
        time.sleep(0.01)
    if interrupts:
        time.sleep(0.3)  # it is in the wait by now
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert output.count("\n") == 1
    assert "(no answer before the end)" in output


@dataclass
class Flags:
    """A config with a secret."""

    steps: int = 1
    """Steps."""
    webhook: str | None = field(default=None, repr=False)
    """An address."""


def test_no_refusal_of_a_flag_repeats_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"https://host/{SECRET}"
    for arguments, told in (
        ((f"--webhok={address}",), "--webhok=https://... is no flag here; did you mean --webhook?"),
        (("--webhok", address), "--webhok is no flag here; did you mean --webhook?"),
        ((address,), "'https://...' belongs to no flag"),
        (("--webhook",), "--webhook: it needs a value"),
    ):
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        with pytest.raises(UsageError) as refusal:
            parse(Flags)
        assert str(refusal.value).startswith(told)
        assert SECRET not in str(refusal.value)
    with pytest.raises(UsageError, match=r"^--webhook of another type cannot be: it must be a text$"):
        check_types(Flags(webhook=address.encode()))  # type: ignore[arg-type]
