"""examples/stream_to_web.py: browsers get the text of Engine.stream, several at once, and only from its own page."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import quote

import pytest
from assets import REPO
from example_runs import ON_CPU, command

from baize_engine import Engine

NAME = "stream_to_web.py"
QUESTIONS = [
    "What is the capital of France?",
    "Who are you?",
    "Count to ten.",
    "é & 100 % <b>",
    "A\nB",
    "Write a story.",
]


@pytest.fixture(scope="module")
def server(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the example, which must live until Ctrl-C ends it, and tell of no error."""
    log = tmp_path_factory.mktemp("web") / "log"
    with log.open("w") as errors:
        started = command(NAME, "--model", demo, "--port", 0)
        process = subprocess.Popen(
            started,
            env={**os.environ, **ON_CPU},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
    assert process.stdout is not None
    try:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())
        assert found, log.read_text()
        yield int(found[1])
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def get(port: int, path: str, **headers: str) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def asked(port: int, question: str) -> list[str]:
    """The pieces that a browser gets, from a stream that ended well."""
    with get(port, f"/?{quote(question, safe='')}") as answer:
        assert (answer.status, answer.getheader("Content-Type")) == (200, "text/event-stream")
        *events, last, rest = answer.read().decode().split("\n\n")
    assert (last, rest) == ("event: end\ndata: end", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event[6:]) for event in events]


@pytest.fixture(scope="module")
def wanted(demo: Path) -> dict[str, list[str]]:
    """The pieces of each question's answer, one after the other."""
    with Engine.from_pretrained(demo, device="cpu") as engine:
        ids = {question: engine.chat_ids([{"role": "user", "content": question}]) for question in QUESTIONS}
        pieces = {question: list(engine.stream(prompt)) for question, prompt in ids.items()}
        texts = {question: engine.generate(prompt)[0].text for question, prompt in ids.items()}
    assert {question: "".join(each) for question, each in pieces.items()} == texts
    assert len(set(texts.values())) > 3
    return pieces


def test_the_page_asks_where_the_answers_are(server: int) -> None:
    with get(server, "/") as page:
        assert (page.status, page.getheader("Content-Type")) == (200, "text/html")
        text = page.read()
    assert text == (REPO / "examples" / "stream_to_web.html").read_bytes()
    assert b'new EventSource("/?" + encodeURIComponent(' in text
    assert b'addEventListener("end"' in text
    assert b"innerHTML" not in text


def test_browsers_at_once_get_their_own_answers(server: int, wanted: dict[str, list[str]]) -> None:
    with ThreadPoolExecutor(3 * len(QUESTIONS)) as browsers:
        found = list(browsers.map(lambda question: asked(server, question), 3 * QUESTIONS))
    assert found == [wanted[question] for question in 3 * QUESTIONS]


def test_a_slow_browser_keeps_nobody_waiting(server: int, wanted: dict[str, list[str]]) -> None:
    with socket.create_connection(("127.0.0.1", server), timeout=60) as slow:
        slow.sendall(b"GET /?Who%20are%20you%3F HTTP/1.1\r\n")
        assert asked(server, QUESTIONS[0]) == wanted[QUESTIONS[0]]
        slow.sendall(f"Host: 127.0.0.1:{server}\r\n\r\n".encode())
        with slow.makefile("rb") as answer:
            events = answer.read().partition(b"\r\n\r\n")[2].decode().split("\n\n")
    assert [json.loads(event[6:]) for event in events[:-2]] == wanted["Who are you?"]


def test_what_cannot_be_answered_is_refused(server: int, wanted: dict[str, list[str]]) -> None:
    with get(server, f"/?{'long%20' * 2000}") as answer:
        assert answer.status == 400
        assert b"tokens" in answer.read()
    for headers in ({"Host": "example.com"}, {"Host": f"localhost:{server + 1}"}, {"Sec_Fetch_Site": "cross-site"}):
        with get(server, "/?Hello", **headers) as answer:
            assert answer.status == 403, headers
    with get(server, "/?Hello", Sec_Fetch_Site="same-origin") as answer:
        assert answer.status == 200
        answer.read()
    assert asked(server, QUESTIONS[0]) == wanted[QUESTIONS[0]]


def test_it_listens_on_this_machine_alone(server: int) -> None:
    with pytest.raises(ConnectionRefusedError):  # another address of the loopback
        socket.create_connection(("127.0.0.2", server), timeout=10)


def test_a_browser_that_leaves_disturbs_nobody(server: int, wanted: dict[str, list[str]]) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server), timeout=60) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets the connection
            gone.sendall(f"GET /?Write%20a%20story. HTTP/1.1\r\nHost: 127.0.0.1:{server}\r\n\r\n".encode())
            assert gone.recv(1)
    assert asked(server, QUESTIONS[0]) == wanted[QUESTIONS[0]]
