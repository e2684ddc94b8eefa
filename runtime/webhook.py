"""A webhook: a chat that is told what becomes of a run, one line at a time, while the training goes on."""

import json
import os
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Self
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from runtime.exits import UsageError

VARIABLE = "DQN_WEBHOOK_URL"
HEADERS = {"Content-Type": "application/json", "User-Agent": "q_agent_train"}  # Discord refuses Python's own name
ANSWER_SECONDS = 5.0  # for each answer of the network to a message
END_SECONDS = 5.0  # for what is unsent when the run ends
MOST_CHARACTERS = 2_000  # Discord refuses more


class Webhook:
    """Sends lines about a run, in their order, from a thread of its own; without an address, nothing, at no cost.

    Each is an HTTP POST of JSON, the line as `text` (Slack, Mattermost) and as `content` (Discord). Whatever goes wrong
    is one warning for the whole run. The address is a secret: no message, no error and no file repeats it.

    A context manager: it sends what ends its block, unless that is a `UsageError`, and waits for the last answers.
    """

    def __init__(self, address: str | None, subject: str):
        """Without `address`, that of `VARIABLE`; raises `UsageError` if it is none. `subject` begins each line."""
        address = checked_address(address)
        self._subject = subject
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._all_sent = threading.Event()
        self._warning = threading.Lock()
        self._warned = False
        self._thread: threading.Thread | None = None
        if address is not None:
            self._address = address
            self._opener = urllib.request.build_opener(_NoRedirects)
            self._thread = threading.Thread(target=self._send_all, name="webhook", daemon=True)
            self._thread.start()

    def send(self, line: str) -> None:
        """Have a line sent behind those before it; returns at once."""
        if self._thread:
            self._lines.put(" ".join(f"{self._subject} {line}".split())[:MOST_CHARACTERS])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if not self._thread:
            return
        if isinstance(error, KeyboardInterrupt):
            self.send("stopped at once")
        elif error and not isinstance(error, UsageError):
            self.send(f"failed ({type(error).__name__}): {error}")
        self._lines.put(None)
        all_sent = False
        with suppress(KeyboardInterrupt):  # Ctrl-C ends the wait; how the run ended stays as it was
            all_sent = self._all_sent.wait(END_SECONDS)
        if not all_sent:
            self._warn("no answer before the end")

    def _send_all(self) -> None:
        for line in iter(self._lines.get, None):
            try:
                body = json.dumps({"text": line, "content": line}).encode()
                # A new one each time: used again, urllib would send it through a proxy in the clear, even with https.
                request = urllib.request.Request(self._address, body, HEADERS)
                self._opener.open(request, timeout=ANSWER_SECONDS).close()
            except Exception as error:  # OSError, HTTPException, ValueError: the library raises all kinds
                self._warn(_cause(error))
        self._all_sent.set()

    def _warn(self, cause: str) -> None:
        with self._warning:  # both threads come here; and while Python ends, none may still be printing
            if not self._warned:
                self._warned = True
                with suppress(OSError, ValueError):  # there is nobody to tell
                    tqdm.write(f"The webhook did not take a message ({cause}); the run goes on without it; said once.")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: urllib would make a GET of the POST."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def checked_address(address: str | None) -> str | None:
    """The address to post to: the typed one, else that of `VARIABLE`, if any; raises `UsageError` if it is none."""
    name, address = (VARIABLE, os.environ.get(VARIABLE) or None) if address is None else ("--webhook", address)
    if address is None:
        return None
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").encode("idna")  # raises for what no name server knows
        valid = parts.scheme in ("http", "https") and host and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not (valid and address.isascii() and address.isprintable() and " " not in address):
        # Raised out here: in its chain stands no exception that quotes the address.
        raise UsageError(f"{name} is no https:// or http:// address (without user and password); give another")
    return address


def _cause(error: Exception) -> str:
    """Why a message was not sent, in words that hold no part of the address, as an exception's own may."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, OSError) else error
    words = None if isinstance(cause, ssl.SSLError) else getattr(cause, "strerror", None)  # OpenSSL's name the host
    return words or type(cause).__name__
