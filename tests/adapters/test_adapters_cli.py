"""`python -m adapters`: inspect, validate and push, as a user runs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.__main__ import app
from adapters.backbone import Backbone
from adapters.file import load, serialize
from adapters.spec import Probe
from tests.tiny import random_adapter, tiny_backbone


@pytest.fixture
def file(bert: Backbone, tmp_path: Path) -> Path:
    path = tmp_path / "sst2.safetensors"
    path.write_bytes(random_adapter(bert, "sst2", ["negative", "positive"])[2])
    return path


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert isinstance(result.exception, SystemExit)


def test_inspect(file: Path, bert: Backbone) -> None:
    """Inspect shows the task, version, labels, backbone and size, each on one line."""
    adapter = load(file)
    shown = dict(line.split("  ", 1) for line in invoke("inspect", file).stdout.splitlines())
    shown = {key.strip(): value.strip() for key, value in shown.items()}
    assert shown["task"] == "sst2"
    assert shown["version"] == adapter.digest
    assert shown["labels"] == "negative, positive"
    assert shown["size"] == f"{adapter.bytes:,} bytes, {adapter.parameters:,} parameters"
    assert shown["backbone"].startswith(
        f"{bert.reference.name} (2 layers of 32, fingerprint {bert.fingerprint[:12]}"
    )


def test_inspect_json(file: Path) -> None:
    """Inspect as JSON gives the version and the whole spec."""
    shown = json.loads(invoke("inspect", file, "--json").stdout)
    adapter = load(file)
    assert shown.pop("version") == adapter.digest
    assert shown == adapter.spec.model_dump(mode="json")


def test_validate(file: Path, bert_folder: Path) -> None:
    """A valid file is called valid, alone and with its probe replayed on its backbone."""
    sentence = f"{file}: a valid adapter for task sst2, version {load(file).version}\n"
    assert invoke("validate", file).stdout == sentence
    assert invoke("validate", file, "--backbone", bert_folder).stdout == sentence


def test_validate_json(file: Path) -> None:
    """Validate as JSON says for which task the file is and which version it is."""
    assert json.loads(invoke("validate", file, "--json").stdout) == {
        "task": "sst2",
        "version": load(file).version,
    }


def test_inspect_on_a_terminal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, inspect shows the same as a table."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = invoke("inspect", file).stdout
    assert "\x1b[1mtask" in shown
    assert load(file).digest in shown


def test_validate_on_another_backbone(file: Path, tmp_path: Path) -> None:
    """A file for another backbone is refused by the fingerprints."""
    other = tiny_backbone(tmp_path / "other", "bert", seed=1)
    assert_refused(
        invoke("validate", file, "--backbone", other), "the adapter was made for backbone"
    )
    assert_refused(
        invoke("validate", file, "--backbone", tmp_path / "none"), "is no folder; expected one that"
    )


def test_validate_of_a_false_probe(bert: Backbone, bert_folder: Path, tmp_path: Path) -> None:
    """A file whose probe does not replay is refused with what came and what was expected."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"])
    probe = Probe(
        inputs=spec.probe.inputs, logits=tuple(tuple(-x for x in row) for row in spec.probe.logits)
    )
    (tmp_path / "false").write_bytes(serialize(spec.model_copy(update={"probe": probe}), tensors))
    assert invoke("validate", tmp_path / "false").exit_code == 0
    assert_refused(
        invoke("validate", tmp_path / "false", "--backbone", bert_folder),
        "probe input 0 gives the logits [",
    )


@pytest.mark.parametrize(
    "command", [("inspect",), ("validate",), ("push", "--url", "http://127.0.0.1:1")]
)
def test_files_that_are_none(tmp_path: Path, file: Path, command: tuple[str, ...]) -> None:
    """A file that is absent, a folder, or no adapter is refused by its name, whatever the
    command."""
    assert_refused(
        invoke(*command, tmp_path / "absent"),
        f"{tmp_path / 'absent'} cannot be read: No such file or directory",
    )
    reason = "is a folder, which is converted first" if command[0] == "push" else "cannot be read"
    assert_refused(invoke(*command, tmp_path), f"{tmp_path} {reason}")
    file.write_bytes(file.read_bytes()[:-9])
    assert_refused(invoke(*command, file), f"{file}: the file is not valid safetensors")
    os.truncate(file, 1 << 40)  # a hole: more than any memory
    assert_refused(invoke(*command, file), f"{file}: the file is not valid safetensors")
    (tmp_path / "empty").touch()
    os.truncate(tmp_path / "empty", 1 << 40)
    assert_refused(
        invoke(*command, tmp_path / "empty"), f"{tmp_path / 'empty'}: the file's header is not JSON"
    )


def test_refusal_of_the_program(tmp_path: Path) -> None:
    """The program itself ends with exit code 2, one line on stderr and no traceback."""
    (tmp_path / "x").write_bytes(b"not an adapter, by far")
    command = [sys.executable, "-m", "adapters", "validate", str(tmp_path / "x")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {tmp_path / 'x'}: the file's header claims ")
    assert run.stderr.count("\n") == 1


class Server(ThreadingHTTPServer):
    """Answers every upload with `answer` and keeps what it got."""

    answer: tuple[int, bytes]
    got: list[tuple[str, str | None, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Authorization"], body))
        status, answer = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        # a codec that Python has, and that decodes nothing
        self.send_header("Content-Type", "text/plain; charset=undefined")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def stored(file: Path) -> bytes:
    """What a server answers that has stored a file, as far as a push reads it."""
    return json.dumps({"versions": [{"version": load(file).version}]}).encode()


@pytest.fixture
def server(file: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.got = []
        server.answer = (201, stored(file))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "options", "said", "activate"),
    [
        (201, [], "uploaded and is active", b"true"),
        (200, [], "was there already and is active", b"true"),
        (201, ["--no-activate"], "uploaded", b"false"),
    ],
)
def test_push(
    file: Path, server: Server, status: int, options: list[str], said: str, activate: bytes
) -> None:
    """A push sends the file's very bytes, and says what the server did with them."""
    server.answer = (status, stored(file))
    result = invoke(
        "push",
        file,
        "--url",
        f"http://127.0.0.1:{server.server_port}/",
        "--key",
        "secret",
        *options,
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"sst2@{load(file).version} {said}\n"
    ((path, authorization, body),) = server.got
    assert (path, authorization) == ("/adapters", "Bearer secret")
    assert file.read_bytes() in body
    assert b'name="activate"\r\n\r\n' + activate in body


def test_push_json(file: Path, server: Server) -> None:
    """A push as JSON says whether the file was new to the server."""
    url = f"http://127.0.0.1:{server.server_port}"
    for status, created in ((201, True), (200, False)):
        server.answer = (status, stored(file))
        said = json.loads(invoke("push", file, "--url", url, "--json").stdout)
        assert said == {"task": "sst2", "version": load(file).version, "created": created}


def test_the_key_from_the_environment(
    file: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --key the admin key comes from the environment, and without that none is sent."""
    url = f"http://127.0.0.1:{server.server_port}"
    invoke("push", file, "--url", url)
    monkeypatch.setenv("ADAMIX_ADMIN_KEY", "from env")
    invoke("push", file, "--url", url)
    assert [authorization for _, authorization, _ in server.got] == [None, "Bearer from env"]


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (
            401,
            b'{"error": "the key is wrong; expected the admin key"}',
            "401: the key is wrong; expected the admin key",
        ),
        (
            422,
            b'{"error": "the adapter was made for another", "error_type": "BackboneMismatch"}',
            "422: the adapter was made",
        ),
        (502, b"<html>bad gateway</html>", "502: <html>bad gateway</html>"),
        (500, b"[]", "500: []"),
        (404, b'{"detail": "Not Found"}', '404: {"detail": "Not Found"}'),
        (302, b"", "302"),
        (503, b"", "503"),
        (500, b"[" * 100_000, "500: [[["),
        (500, b'{"error": "\\u001b]0;title\\u0007"}', r"500: \x1b]0;title\x07"),
        (500, b"one\ntwo", r"500: one\ntwo"),
        (200, b"<html>log in first</html>", "200, but not with this file's version; expected"),
        (201, b"{}", "201, but not with this file's version; expected"),
        (201, b'{"versions": [{"version": ""}, 7]}', "201, but not with"),
    ],
)
def test_push_refused(file: Path, server: Server, status: int, answer: bytes, reason: str) -> None:
    """Whatever a server answers but the stored version becomes one sentence with its reason, which
    does not drive the terminal."""
    server.answer = (status, answer)
    url = f"http://127.0.0.1:{server.server_port}"
    assert_refused(invoke("push", file, "--url", url), f"{url} answered {reason}")


def test_push_to_nobody(file: Path) -> None:
    """A closed port, an address that is none and a key that no header takes each give one
    sentence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert_refused(invoke("push", file, "--url", url), f"{url} cannot be reached: ")
    nowhere = ("localhost:8000", "", "http://[", "ftp://x", "http://a..b", f"http://{'a' * 64}.org")
    for url in nowhere:
        assert_refused(invoke("push", file, "--url", url), f"{url} cannot be reached: ")
    assert_refused(
        invoke("push", file, "--url", "http://127.0.0.1:1", "--key", "clé"),
        "the key holds a character",
    )


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "socks4://127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:9"),
        ("HTTP_PROXY", "nonsense://["),
        ("SSL_CERT_FILE", "/nonexistent"),
    ],
)
def test_push_to_this_machine_with_a_proxy(
    file: Path, server: Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A push to a server on this machine uses no proxy and needs no certificates, whatever the
    environment says."""
    monkeypatch.setenv(variable, value)
    for host in ("127.0.0.1", "localhost"):
        result = invoke("push", file, "--url", f"http://{host}:{server.server_port}")
        assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ALL_PROXY", "socks5://u:pw@127.0.0.1:1080", "ALL_PROXY (socks5://127.0.0.1:1080) cannot"),
        ("HTTP_PROXY", "socks4://127.0.0.1:9", "HTTP_PROXY (socks4://127.0.0.1:9) cannot be used"),
        (
            "HTTP_PROXY",
            "http://u:pw@127.0.0.1:9",
            "http://example.org cannot be reached by the proxy of HTTP_PROXY (http://127.0.0.1:9)",
        ),
        ("http_proxy", "127.0.0.1:9", "reached by the proxy of http_proxy (http://127.0.0.1:9): "),
    ],
)
def test_push_by_a_proxy(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    """A proxy that cannot be used, or that does not answer, is named by its variable, without its
    password."""
    monkeypatch.setenv(variable, value)
    result = invoke("push", file, "--url", "http://example.org")
    assert_refused(result, message)
    assert "pw" not in result.stderr


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("content", [None, "no certificates"])
def test_push_with_wrong_certificates(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """Certificates that cannot be read are named by their variable."""
    place = tmp_path / "certificates.pem"
    if content is not None:
        place.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(place))
    result = invoke("push", file, "--url", "https://127.0.0.1:1")
    assert_refused(result, "error: SSL_CERT_FILE is ")
    assert "which cannot be read: " in result.stderr


@pytest.mark.parametrize("key", ["secret\n", " secret\t\r\n"])
def test_a_key_with_white_space_around(file: Path, server: Server, key: str) -> None:
    """White space around a key, which one from a file has, is not sent."""
    result = invoke("push", file, "--url", f"http://127.0.0.1:{server.server_port}", "--key", key)
    assert result.exit_code == 0, result.output
    assert [authorization for _, authorization, _ in server.got] == ["Bearer secret"]


@pytest.mark.parametrize("key", ["se\ncret", "se\x00cret", "sécret"])
def test_no_message_holds_the_key(file: Path, server: Server, key: str) -> None:
    """A key that no header takes is refused without being shown, and nothing is sent."""
    result = invoke("push", file, "--url", f"http://127.0.0.1:{server.server_port}", "--key", key)
    assert_refused(result, "the key holds a character that no header takes")
    assert "cret" not in result.stderr
    assert server.got == []


def test_no_message_holds_a_password(file: Path) -> None:
    """A password in the server's address is not shown."""
    result = invoke("push", file, "--url", "http://me:secret@127.0.0.1:1")
    assert_refused(result, "http://127.0.0.1:1 cannot be reached: ")
    assert "secret" not in result.stderr


def test_a_long_refusal_is_cut(file: Path, server: Server) -> None:
    """Of a server's long answer as much is shown as a sentence can hold."""
    server.answer = (422, json.dumps({"error": "x" * 100_000}).encode())
    result = invoke("push", file, "--url", f"http://127.0.0.1:{server.server_port}")
    assert_refused(result, "answered 422: xxx")
    assert len(result.stderr) < 700


def test_validate_says_what_an_old_file_does_not_say(
    file: Path, bert_folder: Path, bert: Backbone
) -> None:
    """A file from before backbones had settings is valid by its probe, with a note that this is all
    that tells; a file of today gets no note."""
    assert invoke("validate", file, "--backbone", bert_folder).stderr == ""
    spec, tensors, _ = random_adapter(bert, "sst2", ["negative", "positive"])
    old = spec.backbone.model_copy(update={"settings": None})
    file.write_bytes(serialize(spec.model_copy(update={"backbone": old}), tensors))
    result = invoke("validate", file, "--backbone", bert_folder)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("note: the file does not say how its backbone splits texts")


def test_names_that_are_too_long(tmp_path: Path) -> None:
    """A path that no file system takes is refused in a sentence by each command."""
    long = tmp_path / ("a" * 300)
    for command in (
        ("inspect", long),
        ("push", long, "--url", "http://localhost:1"),
        ("convert", long, "--out", long, "--task", "t"),
        ("copy", long, tmp_path / "to"),
    ):
        assert_refused(invoke(*command), "")
