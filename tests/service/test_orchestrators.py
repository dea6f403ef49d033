"""What an orchestrator does to the environment: it adds variables, white space and quotation
marks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from service.settings import InvalidSettings, Settings, read_settings, unknown_variables
from tests.service.conftest import Server, running

ROOT = Path(__file__).parents[2]
DEPLOYMENT, SERVICE = (
    yaml.safe_load((ROOT / f"deploy/kubernetes/{name}.yaml").read_text())
    for name in ("deployment", "service")
)


def service_links() -> dict[str, str]:
    """What Kubernetes gives every pod of the namespace for our Service, where enableServiceLinks is
    true (kubernetes/pkg/kubelet/envvars)."""
    prefix = SERVICE["metadata"]["name"].upper().replace("-", "_")
    (port,) = SERVICE["spec"]["ports"]
    number, link = str(port["port"]), f"tcp://10.96.12.34:{port['port']}"
    return {
        f"{prefix}_SERVICE_HOST": "10.96.12.34",
        f"{prefix}_SERVICE_PORT": number,
        f"{prefix}_SERVICE_PORT_{port['name'].upper()}": number,
        f"{prefix}_PORT": link,
        f"{prefix}_PORT_{number}_TCP": link,
        f"{prefix}_PORT_{number}_TCP_PROTO": "tcp",
        f"{prefix}_PORT_{number}_TCP_PORT": number,
        f"{prefix}_PORT_{number}_TCP_ADDR": "10.96.12.34",
    }


def said_by_the_pod() -> dict[str, str]:
    """The settings that deployment.yaml says with a value."""
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ADAMIX_"):
            monkeypatch.delenv(name)


def test_service_links_are_refused_by_name(tmp_path: Path) -> None:
    """Started with Kubernetes' variables for a Service of its own name, the service says what they
    are and how to be rid of them, and ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env={**os.environ, **service_links(), "ADAMIX_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: setting ADAMIX_PORT is 'tcp://10.96.12.34:80', which Kubernetes tells every pod"
        " beside a Service called adamix; expected a value of your own: set ADAMIX_PORT in the pod,"
        " or enableServiceLinks to false\n"
    )
    assert not (tmp_path / "store").exists()


def test_the_pod_starts_beside_its_service(tmp_path: Path) -> None:
    """With the variables of the Service and the pod's own over them, as Kubernetes sets them, the
    service starts."""
    said = said_by_the_pod()
    assert said["ADAMIX_PORT"] == "8000"
    said["ADAMIX_PORT"] = "0"  # that of the pod may be taken on the machine of the tests
    beside = {**service_links(), **said}
    settings = {
        name.removeprefix("ADAMIX_").lower(): value
        for name, value in beside.items()
        if name.startswith("ADAMIX_")
    }
    with running(tmp_path / "store", **settings) as server:
        assert server.client().get("/ready").status_code == 200


@pytest.mark.usefixtures("_no_settings")
def test_white_space_at_the_ends_is_no_part_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a path and a number that end in a newline, as a secret made of a file does, are those
    without it."""
    for name, value in (("API_KEY", "a-secret\n"), ("STORE", " /data\r\n"), ("SLOTS", "7\n")):
        monkeypatch.setenv(f"ADAMIX_{name}", value)
    settings = read_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "a-secret"
    assert (settings.store, settings.slots) == ("/data", 7)


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "udp://[fd00::1]:53", "'udp://[fd00::1]:53', which Kubernetes tells every pod"),
        ("PORT", '"8000"', "'\"8000\"', in quotation marks; expected it without"),
        ("LOG_LEVEL", "'info'", "\"'info'\", in quotation marks; expected it without"),
        ("HOST", " \n", "white space alone; expected a value, or no such variable"),
        ("API_KEY", "\n", "white space alone; expected a value, or no such variable"),
        ("ADMIN_KEY", '"hush"', "in quotation marks; expected it without"),
    ],
)
def test_a_spoilt_value_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    """A value that an orchestrator spoilt is named with what was found; a key is named, but not
    shown."""
    monkeypatch.setenv(f"ADAMIX_{name}", value)
    with pytest.raises(
        InvalidSettings, match=f"^{re.escape(f'setting ADAMIX_{name} is {sentence}')}"
    ) as refusal:
        read_settings()
    assert "hush" not in str(refusal.value)


@pytest.mark.usefixtures("_no_settings")
def test_misspelt_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is no setting is named; what Kubernetes and compose set is not."""
    linked = {
        "ADAMIX_SERVICE_HOST": "10.96.12.34",
        "ADAMIX_SERVICE_PORT": "80",
        "ADAMIX_SERVICE_PORT_HTTP": "80",
        "ADAMIX_PORT_80_TCP": "tcp://10.96.12.34:80",
        "ADAMIX_PORT_80_TCP_ADDR": "10.96.12.34",
        "ADAMIX_TWO_PORT": "tcp://10.96.12.35:80",
        "ADAMIX_PUBLISH": "0.0.0.0:8000",
    }
    for name, value in {**linked, "ADAMIX_API_KYE": "hush", "ADAMIX_SLOTS": "7"}.items():
        monkeypatch.setenv(name, value)
    assert unknown_variables() == ["ADAMIX_API_KYE"]


def test_a_misspelt_variable_is_logged_without_its_value(tmp_path: Path) -> None:
    """A service that starts with a misspelt key, or a seed that is no folder, says so."""
    absent = tmp_path / "absent"
    with running(tmp_path / "store", seed=absent, api_kye="hush-hush") as server:
        said = [line for line in server.lines if line.get("level") == "warning"]
    assert [line.get("variable") for line in said] == ["ADAMIX_API_KYE", None]
    assert said[1]["seed"] == str(absent)
    assert "hush-hush" not in str(server.lines)


@pytest.mark.usefixtures("_no_settings")
def test_a_folder_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may begin with ~, which no shell replaces in a file of variables."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("ADAMIX_STORE", "~/store")
    assert read_settings().store == "/home/me/store"
    monkeypatch.setenv("ADAMIX_STORE", "~nobody-has-this-name/store")
    with pytest.raises(InvalidSettings, match="ADAMIX_STORE is '~nobody-has-this-name/store', and"):
        read_settings()


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize("name", ["https://a.example", "b.example:8443", "*", "*.example", "a b"])
def test_allowed_hosts_that_no_request_could_have(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is no host's name is refused: it would let no request in."""
    monkeypatch.setenv("ADAMIX_ALLOWED_HOSTS", f"good.example, {name}")
    with pytest.raises(InvalidSettings, match=re.escape(f"{name!r} is no host's name")):
        read_settings()
    monkeypatch.setenv("ADAMIX_ALLOWED_HOSTS", "good.example, a_b.c-d., ::1, fd00::1, 10.0.0.1,")
    assert len(read_settings().hosts or ()) == 5


def test_compose_passes_on_every_setting() -> None:
    """What a user sets in the shell or in .env reaches the container: every setting by its name
    alone, but the port and those that the image sets, whose values a name alone would take away."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["service"]
    passed = {name: value for name, value in service["environment"].items() if "ADAMIX" in name}
    by_the_image = set(re.findall(r"\b(ADAMIX_\w+)=", (ROOT / "Dockerfile").read_text()))
    assert by_the_image
    every = {f"ADAMIX_{name.upper()}" for name in Settings.model_fields}
    assert passed == dict.fromkeys(every - by_the_image - {"ADAMIX_PORT"})


@pytest.mark.parametrize("port", ["{}", " {}", "{}\n", "{} \r\n"])
def test_the_health_check_knows_the_port(server: Server, port: str) -> None:
    """The image's health check finds the service at the port that the service reads from the same
    variable, with white space around it or without; and fails where there is none."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    (written,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", lines, re.M)
    _, *arguments = json.loads(written)
    listening = urlsplit(server.url).port or 0

    def check(value: str) -> int:
        environment = {**os.environ, "ADAMIX_PORT": value}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        ).returncode

    assert check(port.format(listening)) == 0
    assert check(port.format(1)) != 0
