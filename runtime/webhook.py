"""A webhook: a chat that is told what becomes of a run, one line at a time, while the training continues."""

import json
import os
import threading
import urllib.error
import urllib.request
from queue import SimpleQueue
from typing import Self

from tqdm.auto import tqdm

from runtime.exits import UsageError

VARIABLE = "DQN_WEBHOOK_URL"
HEADERS = {"Content-Type": "application/json", "User-Agent": "q_agent_train"}  # Discord refuses Python's own name
ANSWER_SECONDS = 5.0  # for each answer of the network to a message
END_SECONDS = 5.0  # for what is unsent when the run ends
MOST_CHARACTERS = 2_000  # Discord refuses more


class Webhook:
    """Sends lines about a run, in their order, from a thread of its own; without an address, nothing.

    Each is an HTTP POST of JSON, the line as `text` (Slack, Mattermost) and as `content` (Discord). Whatever fails is
    one warning for the whole run. The address is a secret: no message and no file repeats it.

    A context manager: it sends what ends its block, unless that is a `UsageError`, and waits for the last answers.
    """

    def __init__(self, address: str | None, subject: str):
        """Without `address`, that of `VARIABLE`; raises `UsageError` if it is invalid. `subject` begins each line."""
        self._address = checked_address(address)
        self._subject = subject
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._warned = False
        self._thread = threading.Thread(target=self._send_all, name="webhook", daemon=True)
        if self._address:
            self._thread.start()

    def send(self, line: str) -> None:
        """Have a line sent after those before it; returns at once."""
        if self._address:
            self._lines.put(" ".join(f"{self._subject} {line}".split())[:MOST_CHARACTERS])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error and not isinstance(error, UsageError):
            self.send(f"ended by {type(error).__name__}: {error}")
        self._lines.put(None)
        if self._address:
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                self._warn("no answer before the end")

    def _send_all(self) -> None:
        for line in iter(self._lines.get, None):
            try:
                body = json.dumps({"text": line, "content": line}).encode()
                request = urllib.request.Request(str(self._address), body, HEADERS)
                urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
            except urllib.error.HTTPError as error:
                self._warn(f"HTTP status {error.code}")
            except Exception as error:  # of many types; only that is shown, since the text may hold the address
                reason = getattr(error, "reason", None)
                self._warn(type(reason if isinstance(reason, Exception) else error).__name__)

    def _warn(self, cause: str) -> None:
        if not self._warned:
            self._warned = True
            tqdm.write(f"The webhook did not accept a message ({cause}); training continues. This is reported once.")


def checked_address(address: str | None) -> str | None:
    """The address to post to: the typed one, else that of `VARIABLE`, if any; raises `UsageError` if it is invalid."""
    name, address = (VARIABLE, os.environ.get(VARIABLE)) if address is None else ("--webhook", address)
    if address and not address.startswith(("https://", "http://")):
        raise UsageError(f"{name} must be an address that begins with https:// or http://")
    return address or None
