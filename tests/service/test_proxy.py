"""nginx with deploy/nginx.conf, in front of a real service: TLS, and what it lets through."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from service.settings import Settings
from tests.service.conftest import ADMIN_KEY, running

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "deploy/nginx.conf").read_text()
API_KEY = "a-key-for-clients"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of the proxy, which trusts its certificate alone."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "adamix.crt", folder / "adamix.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", "/CN=adamix",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    keys = {"admin_key": ADMIN_KEY, "api_key": API_KEY}
    with running(folder / "store", allowed_hosts="adamix.example.com", **keys) as server:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        text = CONFIGURATION.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
        text = re.sub(r"\n *listen \[::\].*", "", text)
        text = text.replace("/etc/nginx/", f"{folder}/")
        written = folder / "nginx.conf"
        written.write_text(
            f"user root; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {temporary(folder)}\n{text}}}\n"
        )
        nginx = ["nginx", "-p", str(folder), "-c", str(written)]
        # It listens when the command is back.
        done = subprocess.run(nginx, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        try:
            trusted = ssl.create_default_context(cafile=str(certificate))
            yield httpx2.Client(
                base_url=f"https://localhost:{port}",
                verify=trusted,
                timeout=60,
                headers={"Authorization": f"Bearer {API_KEY}", "Host": "adamix.example.com"},
            )
        finally:
            subprocess.run([*nginx, "-s", "stop"], capture_output=True, check=True)


def temporary(folder: Path) -> str:
    """nginx's folders for bodies, which are the machine's by default."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)


def test_adapters_and_predictions_pass(
    proxied: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """Over TLS an adapter is uploaded with the admin key and asked with the API key; neither
    works with another one."""
    file = adapter_bytes("proxied", labels=["no", "yes"])
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {ADMIN_KEY}"}, 201)):
        sent = proxied.post("/adapters", files={"file": file}, headers=headers)
        assert sent.status_code == status, sent.text
    answer = proxied.post("/predict?task=proxied", json={"inputs": "a text"})
    assert answer.status_code == 200
    assert {one["label"] for one in answer.json()} == {"no", "yes"}
    wrong = proxied.post(
        "/predict?task=proxied", json={"inputs": "a"}, headers={"Authorization": "Bearer x"}
    )
    assert wrong.status_code == 401


def test_no_upgrade_passes(proxied: httpx2.Client) -> None:
    """A request that asks for another protocol is answered as HTTP/1.1, its body as its body."""
    answer = proxied.post(
        "/predict?task=none",
        content=b'{"inputs": "DELETE /adapters/none HTTP/1.1"}',
        headers={"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings"},
    )
    assert (answer.status_code, answer.json()["error_type"]) == (404, "UnknownTask")


def test_another_name_is_refused(proxied: httpx2.Client) -> None:
    """A request for a name that the service was not told of is refused by it."""
    answer = proxied.get("/health", headers={"Host": "rebound.example.net"})
    assert (answer.status_code, answer.json()["error_type"]) == (403, "ForeignHost")


def test_metrics_stay_inside(proxied: httpx2.Client) -> None:
    """The world may ask for health, but not for metrics."""
    assert proxied.get("/health").status_code == 200
    assert proxied.get("/metrics").status_code == 403


def test_the_proxy_takes_what_the_service_takes() -> None:
    """nginx's limit of a body is the service's of an upload, and a form around it; its idle
    connections end before the service ends them."""
    (mebibytes,) = re.findall(r"client_max_body_size (\d+)m;", CONFIGURATION)
    limit = Settings.model_fields["max_upload_bytes"].default
    assert limit < int(mebibytes) << 20 < limit + (2 << 20)
    (seconds,) = re.findall(r" keepalive_timeout (\d+)s;", CONFIGURATION)
    assert int(seconds) < Settings.model_fields["keep_alive_seconds"].default
