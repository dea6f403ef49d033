"""What lies between the socket and the application: where a request ends, what is refused before
any route sees it, and what a connection does after an error."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from benchmarks.reliability import requests
from benchmarks.reliability.requests import chunked, lengthy
from tests.service.conftest import Server
from tests.service.sockets import Answer, answers, connected, exchange, first_answer, parsed, seen

BODY = json.dumps({"inputs": "good"}).encode()
HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PREDICT = b"POST /predict?task=sst2 HTTP/1.1\r\nHost: localhost\r\n"

UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "several": b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
}

JAVA = """
import java.net.URI; import java.net.http.*;
class Ask { public static void main(String[] a) throws Exception {
  HttpClient client = HttpClient.newHttpClient();
  for (int i = 0; i < 3; i++) {
    HttpRequest request = HttpRequest.newBuilder(URI.create(a[0]))
      .POST(HttpRequest.BodyPublishers.ofString("{\\"inputs\\": \\"good\\"}")).build();
    HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
    System.out.println(answer.statusCode() + " " + answer.version());
  }
} }
"""


def paths(server: Server) -> set[str]:
    """Those that any request had so far."""
    return {line["path"] for line in list(server.lines) if line["event"] == "request"}


def memory(server: Server) -> int:
    process = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in [process, *process.children()])


@pytest.mark.parametrize("coded", [lengthy, chunked])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_declined_upgrade_keeps_its_body(server: Server, upgrade: str, coded) -> None:  # type: ignore[no-untyped-def]
    """A request whose Upgrade is not taken is read and answered as any other, and so is the one
    after it on the connection."""
    request = PREDICT + UPGRADES[upgrade] + coded(BODY)
    found = exchange(server, request + request + LAST)
    assert [answer.status for answer in found] == [200, 200, 200]
    assert found[0].body == found[1].body == exchange(server, PREDICT + coded(BODY) + LAST)[0].body


@pytest.mark.parametrize("coded", [lengthy, chunked])
def test_a_declined_upgrade_in_any_segments(server: Server, coded) -> None:  # type: ignore[no-untyped-def]
    """Wherever such a request is cut into segments, its body is its body, also where that looks
    like a request."""
    hidden = PREDICT + UPGRADES["h2c"] + coded(HIDDEN)
    plain = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n" + UPGRADES["h2c"] + b"\r\n"
    stream = hidden + plain + LAST
    for cut in range(1, len(stream), 5):
        found = exchange(server, stream[:cut], stream[cut:])
        assert [answer.status for answer in found] == [400, 200, 200], (cut, found)
        assert found[0].error_type == "MalformedBody"
    assert "/smuggled" not in paths(server)


def test_a_declined_upgrade_byte_by_byte(server: Server) -> None:
    """The same, where each byte comes alone."""
    stream = PREDICT + UPGRADES["websocket"] + lengthy(HIDDEN) + LAST
    with connected(server) as connection:
        for byte in stream:
            connection.sendall(bytes([byte]))
        found = answers(connection)
    assert [answer.status for answer in found] == [400, 200]
    assert "/smuggled" not in paths(server)


def test_many_upgrades_in_one_segment(server: Server) -> None:
    """Forty requests that ask to upgrade, sent at once, are answered one by one."""
    request = (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    )
    found = exchange(server, request * 40 + LAST)
    assert [answer.status for answer in found] == [200] * 41


def test_connect_is_refused_with_what_follows_it(server: Server) -> None:
    """CONNECT is answered with 400 and the end of the connection: what follows it is no HTTP of
    ours."""
    for more in (b"", b"Content-Length: 45\r\n"):
        request = b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n"
        (answer,) = exchange(server, request + HIDDEN)
        assert (answer.status, answer.error_type) == (400, "MalformedRequest")
        assert answer.headers["connection"] == "close"
    assert "/smuggled" not in paths(server)


def test_the_preface_of_http_2(server: Server) -> None:
    """A client that speaks HTTP/2 from its first byte gets a 400, and nothing that follows is
    read."""
    (answer,) = exchange(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN)
    assert (answer.status, answer.error_type) == (400, "MalformedRequest")
    assert "/smuggled" not in paths(server)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_asks_for_http_2(server: Server) -> None:
    """`curl --http2` with a body is answered as without."""
    found = []
    for options in (["--http2"], []):
        command = ["curl", "-s", "-w", "%{http_code}", *options, "-d", BODY.decode()]
        command.append(f"{server.url}/predict?task=sst2")
        found.append(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found[0] == found[1]
    assert found[0].endswith(b"200")


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK")
def test_the_client_of_the_jdk(server: Server, tmp_path: Path) -> None:
    """Java's HttpClient, which asks for h2c by default, is answered."""
    (tmp_path / "Ask.java").write_text(JAVA)
    done = subprocess.run(
        ["java", "-Xmx64m", "Ask.java", f"{server.url}/predict?task=sst2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["200 HTTP_1_1"] * 3, done.stderr


def test_an_endless_head_is_refused(server: Server) -> None:
    """A head, a URL, or trailers without an end cost little memory, and get 431 or 414 and the end
    of the connection."""
    before = memory(server)
    trailers = PREDICT + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    endless = {
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ": (b"x", 431, "HeadersTooLarge"),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n": (b"x: y\r\n", 431, "HeadersTooLarge"),
        b"GET /": (b"x", 414, "UrlTooLong"),
        b"GE": (b"T", 400, "MalformedRequest"),
        b"": (b"\r\n", 431, "HeadersTooLarge"),
        trailers: (b"x: y\r\n", 431, "HeadersTooLarge"),
        trailers + b"x: ": (b"y", 431, "HeadersTooLarge"),
    }
    for start, (more, status, error_type) in endless.items():
        with connected(server) as connection:
            connection.sendall(start)
            for _ in range(64):
                try:
                    connection.sendall(more * (1_000_000 // len(more)))
                except OSError:  # the server has given up
                    break
            (answer,) = answers(connection)
        assert (answer.status, answer.error_type) == (status, error_type), start
        assert answer.headers["connection"] == "close"
    assert memory(server) - before < 30 << 20


def test_the_limits_of_a_head(server: Server) -> None:
    """A head of 60 KB and 90 headers is taken; one of 65 KiB, or with 101 headers, or with a URL
    of 33 KiB, is not, in one segment or in many."""

    def head(headers: int, length: int, path: int = 7) -> bytes:
        lines = [
            b"GET /health?%b HTTP/1.1" % (b"x" * path),
            b"Host: localhost",
            b"Connection: close",
        ]
        lines += [b"X-%d: %b" % (n, b"x" * length) for n in range(headers - 2)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    expected = {
        head(90, 650): (200, ""),
        head(100, 10): (200, ""),
        head(101, 10): (431, "HeadersTooLarge"),
        head(3, 65 << 10): (431, "HeadersTooLarge"),
        head(90, 750): (431, "HeadersTooLarge"),
        head(3, 10, 30 << 10): (200, ""),
        head(3, 10, 33 << 10): (414, "UrlTooLong"),
    }
    for request, (status, error_type) in expected.items():
        (whole,) = exchange(server, request)
        half = len(request) // 2
        (halves,) = exchange(server, request[:half], request[half:])
        assert whole.status == halves.status == status
        assert not error_type or whole.error_type == error_type


def test_trailers_are_not_headers(server: Server) -> None:
    """What stands after a chunked body is dropped: it changes nothing about the request."""
    trailer = b"Host: elsewhere\r\nExpect: 100-continue\r\nX-Request-ID: late\r\n\r\n"
    request = PREDICT + chunked(BODY)[:-2] + trailer
    found = exchange(server, request + LAST)
    assert [answer.status for answer in found] == [200, 200]
    assert found[0].headers["x-request-id"] != "late"


def test_a_trailer_that_ends_the_connection(server: Server) -> None:
    """Where a trailer says that the connection ends, it ends after the answer: a request that
    follows does not wait for an answer that never comes."""
    request = PREDICT + chunked(BODY)[:-2] + b"Connection: close\r\n\r\n"
    assert [answer.status for answer in exchange(server, request + LAST)] == [200]
    assert [answer.status for answer in exchange(server, request)] == [200]


def test_a_chunk_s_extensions_take_no_memory(server: Server) -> None:
    """Two megabytes of a chunk's extensions are not kept, and its body is read."""
    before = memory(server)
    coded = b"%x;a=%b\r\n%b\r\n0\r\n\r\n" % (len(BODY), b"b" * (2 << 20), BODY)
    found = exchange(server, PREDICT + b"Transfer-Encoding: chunked\r\n\r\n" + coded + LAST)
    assert found[0].status in (200, 431)
    assert memory(server) - before < 20 << 20


FRAMINGS = {
    "a length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n",
    "one length twice": b"Content-Length: 3\r\nContent-Length: 3\r\n",
    "a list of lengths": b"Content-Length: 3, 3\r\n",
    "a negative length": b"Content-Length: -3\r\n",
    "a signed length": b"Content-Length: +3\r\n",
    "a hexadecimal length": b"Content-Length: 0x3\r\n",
    "an empty length": b"Content-Length: \r\n",
    "a length past 64 bits": b"Content-Length: 99999999999999999999999\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "no coding": b"Transfer-Encoding: identity\r\n",
    "chunks of gzip": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunks of gzip, in two headers": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    "gzip of chunks": b"Transfer-Encoding: chunked, gzip\r\n",
    "chunks of chunks": b"Transfer-Encoding: chunked, chunked\r\n",
    "a coding after a tab that is none": b"Transfer-Encoding: \x0bchunked\r\n",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n",
    "a folded header": b"X: y\r\n Content-Length: 3\r\n",
    "a blank before a colon": b"Content-Length : 3\r\n",
    "a blank before a name": b" Content-Length: 3\r\n",
    "a bare line feed": b"X: y\nContent-Length: 3\r\n",
    "a bare carriage return": b"X: y\rContent-Length: 3\r\n",
    "a NUL in a value": b"X: y\0z\r\n",
    "a NUL in a name": b"X\0: y\r\n",
    "a header without a colon": b"Content-Length\r\n",
    "a header without a name": b": 3\r\n",
    "a second host": b"Host: elsewhere\r\n",
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_framing_that_may_be_read_in_two_ways(server: Server, framing: str) -> None:
    """A request that another server might end elsewhere is refused, and so is all that follows."""
    head = PREDICT + FRAMINGS[framing] + b"\r\n"
    for more in (b"abc" + HIDDEN, b"3\r\nabc\r\n0\r\n\r\n" + HIDDEN):
        (answer,) = exchange(server, head + more)
        assert (answer.status, answer.error_type) == (400, "MalformedRequest")
        assert answer.headers["connection"] == "close"
    assert "/smuggled" not in paths(server)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request(server: Server, request_bytes: bytes) -> None:
    """No host, another version of HTTP, no version, a URL that is none, chunks in HTTP/1.0, TLS:
    400 in our form."""
    (answer,) = exchange(server, request_bytes + HIDDEN)
    assert (answer.status, answer.error_type) == (400, "MalformedRequest")
    assert "/smuggled" not in paths(server)


@pytest.mark.parametrize(
    "chunks",
    [
        b"3\nabc\n0\n\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcX0\r\n\r\n",
        b"3;a\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
    ],
)
def test_chunks_that_are_none(server: Server, chunks: bytes) -> None:
    """A body whose chunks cannot be read is refused, and so is all that follows."""
    head = PREDICT + b"Transfer-Encoding: chunked\r\n\r\n"
    for segments in ((head + chunks + HIDDEN,), (head, chunks + HIDDEN)):
        (answer,) = exchange(server, *segments)
        assert (answer.status, answer.error_type) == (400, "MalformedRequest")
    assert "/smuggled" not in paths(server)


def test_answers_come_in_the_order_of_their_requests(server: Server) -> None:
    """What cannot be read is refused after the requests before it have been answered, each with
    its own answer."""
    (expected,) = exchange(server, PREDICT + b"Connection: close\r\n" + lengthy(BODY))
    found = exchange(server, (PREDICT + lengthy(BODY)) * 3 + b"nonsense\r\n\r\n" + HIDDEN)
    assert [answer.status for answer in found] == [200, 200, 200, 400]
    assert [answer.body for answer in found[:3]] == [expected.body] * 3
    broken = PREDICT + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    found = exchange(server, (PREDICT + lengthy(BODY)) * 2 + broken + HIDDEN)
    assert [answer.status for answer in found] == [200, 200, 400]
    assert "/smuggled" not in paths(server)


def test_pipelined_requests_are_bounded(server: Server) -> None:
    """A client that sends 10,000 requests and reads no answer gets those of the first ones, and
    then a refusal; waiting requests take little memory."""
    before = memory(server)
    found = exchange(
        server, PREDICT + lengthy(BODY) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9999
    )
    assert {answer.status for answer in found[:-1]} == {200}
    assert (found[-1].status, found[-1].error_type) == (400, "MalformedRequest")
    assert 16 <= len(found) < 200
    assert memory(server) - before < 10 << 20


def test_framings_at_random(server: Server) -> None:
    """Six hundred framings get answers below 500 or none, never stop the server, take no memory,
    and hide no request that another parser does not find."""
    before, quiet = memory(server), len(server.lines)
    hidden = set()
    for seed in range(600):
        request = requests.framing(seed)
        hidden |= {target for target in requests.by_h11(request) if target.startswith("/hidden")}
        with connected(server) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            try:
                data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            except ConnectionResetError:
                continue
        assert all(answer.status < 500 for answer in parsed(data)), (seed, request, data)
    seen(server)
    found = {path for path in paths(server) if path.startswith("/hidden")}
    assert found
    assert found <= hidden
    assert memory(server) - before < 20 << 20
    assert not [line for line in server.lines[quiet:] if line.get("level") == "error"]


def test_a_hidden_request_stays_hidden(server: Server) -> None:
    """Whatever stands in a head beside a body's one length or its chunks, the body is no request:
    it is dropped, or the connection is."""
    beside = [b"", *UPGRADES.values(), b"Expect: 100-continue\r\n", b"Connection: close\r\n"]
    beside += [b"TE: trailers\r\n", b"Trailer: Content-Length\r\n", b"X-Content-Length: 0\r\n"]
    beside += [b"Connection: content-length\r\n", b"Connection: transfer-encoding, upgrade\r\n"]
    methods = [b"GET", b"POST", b"DELETE", b"OPTIONS", b"PUT"]
    for method, more, coded in itertools.product(methods, beside, (lengthy, chunked)):
        head = b"%b /health HTTP/1.1\r\nHost: localhost\r\n%b" % (method, more)
        with connected(server) as connection:
            connection.sendall(head + coded(HIDDEN) + LAST)
            found = answers(connection)
        assert len(found) in (1, 2), (head, found)
    assert "/smuggled" not in paths(server)


def test_a_connection_outlives_an_error(server: Server) -> None:
    """After an answer that is an error the connection is used again, if the answer does not say
    that it is closed."""
    request = b"POST /predict?task=none HTTP/1.1\r\nHost: localhost\r\n" + lengthy(BODY)
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(request)
            answer = first_answer(connection)
            assert isinstance(answer, Answer)
            assert (answer.status, answer.headers.get("connection")) == (404, None)
