"""What operators look at, in the real Prometheus: it scrapes a running service, knows the alerts,
answers the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adapters.file import parse
from adapters.store import Store
from adapters.traffic import Canary, Split
from service.telemetry.metrics import OUTCOMES, SECONDS
from tests.service.conftest import TASKS, Server, running

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/adamix.json").read_text())
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": (
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
    )
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
DOCUMENTS = ("docs/settings.md", "docs/operate.md")

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="Prometheus is not installed: apt-get install prometheus",
)


@dataclass
class Prometheus:
    """A running Prometheus that scrapes one server; `seconds` is how long the counted requests
    took, all together."""

    client: httpx2.Client
    seconds: float = 0.0

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of the answer, now."""
        return [
            (found["metric"], float(found["value"][1]))
            for found in self.ask("query", query=expression)["result"]
        ]

    def value(self, expression: str) -> float:
        ((_, value),) = self.query(expression)
        return value

    def by(self, label: str, expression: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self.query(expression)}

    def until(self, expression: str, wanted: float) -> None:
        """Ask until the answer is that number: what was scraped last is then what the caller did
        last."""
        deadline = time.monotonic() + 20
        while (found := self.query(expression)) != [({}, wanted)]:
            assert time.monotonic() < deadline, f"{expression} is {found}; expected {wanted}"


def send_traffic(server: Server) -> None:
    """Ten requests, one after the other, one of them refused."""
    film, pair = ["it is a good film", "bad"], {"text": "a man eats", "text_pair": "he eats"}
    calls: list[tuple[str, Any, int]] = (
        [("sst2", film, 200)] * 6 + [("mrpc", [pair, pair], 200)] * 3 + [("sst2", 7, 422)]
    )
    with server.client() as client:
        for task, inputs, status in calls:
            answer = client.post("/predict", params={"task": task}, json={"inputs": inputs})
            assert answer.status_code == status


@pytest.fixture(scope="module")
def watched(
    filled_store: Path,
    adapter_bytes: Callable[..., bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server whose numbers are counted, with traffic before the first scrape: a rate begins at a
    series' first value. The traffic of sst2 is divided, though the active version gets all of
    it."""
    folder = tmp_path_factory.mktemp("watched") / "store"
    shutil.copytree(filled_store, folder)
    with Store(folder) as store:
        other = store.put(parse(adapter_bytes("sst2", seed=1)), activate=False)[0].digest
        active = store.find("sst2").digest
        store.set_split("sst2", Split(active=active, canary=Canary(other, 0)))
    with running(folder, read_only=True) as server:
        send_traffic(server)
        yield server


@contextmanager
def scraping(server: Server, folder: Path, key: str = "") -> Iterator[Prometheus]:
    """deploy/prometheus.yml, but for the target and the pace; `key` is in the file that
    compose.yaml mounts, which is empty where nobody names one."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [
        server.url.removeprefix("http://")
    ]
    config["rule_files"] = [str(DEPLOY / file) for file in config["rule_files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / mounted_key()).write_text(key)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    flags = (
        "config.file=prometheus.yml",
        "storage.tsdb.path=data",
        f"web.listen-address={address}",
    )
    command = ["prometheus", *(f"--{flag}" for flag in flags)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any("Server is ready" in line for line in process.stderr)
        with httpx2.Client(base_url=f"http://{address}", timeout=20) as client:
            yield Prometheus(client)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def mounted_key() -> str:
    """Where compose.yaml puts the key, beside the configuration that it mounts."""
    compose = yaml.safe_load((DEPLOY.parent / "compose.yaml").read_text())
    mounted = [volume.rsplit(":", 2) for volume in compose["services"]["prometheus"]["volumes"]]
    ((_, place, mode),) = [one for one in mounted if one[0] == "${PROMETHEUS_KEY_FILE:-/dev/null}"]
    assert (place.rsplit("/", 1)[0], mode) == ("/etc/prometheus", "ro")
    return str(place.rsplit("/", 1)[1])


@pytest.fixture(scope="module")
def prometheus(watched: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped; then as much traffic again."""
    with scraping(watched, tmp_path_factory.mktemp("prometheus")) as prometheus:
        prometheus.until("sum(adamix_requests_total)", 10)
        began = time.monotonic()
        send_traffic(watched)
        prometheus.until("sum(adamix_requests_total)", 20)
        prometheus.seconds = time.monotonic() - began
        yield prometheus


@needs_prometheus
def test_metrics_that_need_a_key(filled_store: Path, tmp_path: Path) -> None:
    """With ADAMIX_OPEN_METRICS=false, Prometheus scrapes where its key file holds the API key, with
    a newline at its end, and is refused where that is empty."""
    key = "a-key-for-reads"
    settings = {"read_only": True, "api_key": key, "open_metrics": False}
    with running(filled_store, **settings) as server:
        for content, up in ((f"{key}\n", 1), ("", 0)):
            folder = tmp_path / str(up)
            folder.mkdir()
            with scraping(server, folder, content) as prometheus:
                prometheus.until("sum(up)", up)


@needs_prometheus
def test_rate_of_requests_by_task(prometheus: Prometheus) -> None:
    """Prometheus sees who sends how much: seven of ten requests are sst2's."""
    rates = prometheus.by("task", "sum by (task) (rate(adamix_requests_total[1m]))")
    assert rates.keys() == {"sst2", "mrpc"}
    assert rates["sst2"] / sum(rates.values()) == pytest.approx(0.7)


@needs_prometheus
def test_share_of_errors(prometheus: Prometheus) -> None:
    """One request of ten is refused, as the client's fault, none as ours."""
    shares = prometheus.by(
        "outcome",
        "sum by (outcome) (rate(adamix_requests_total[1m])) /"
        " scalar(sum(rate(adamix_requests_total[1m])))",
    )
    assert shares == {"ok": pytest.approx(0.9), "invalid": pytest.approx(0.1)}


@needs_prometheus
def test_latency(prometheus: Prometheus) -> None:
    """The histogram's 99th percentile is above the median, and at most in the bucket of what all of
    them took together."""
    # No closer: the server ends its count a moment after the client has the answer, and a busy
    # machine stretches that.
    quantile = (
        "histogram_quantile({}, sum by (le) (rate(adamix_request_duration_seconds_bucket[1m])))"
    )
    half, high = (prometheus.value(quantile.format(q)) for q in (0.5, 0.99))
    most = next((bound for bound in SECONDS if bound >= prometheus.seconds), SECONDS[-1])
    assert 0 < half <= high <= most


@needs_prometheus
def test_what_is_saved(prometheus: Prometheus, watched: Server) -> None:
    """Prometheus' ratio of full copies to what is held is the one of /storage."""
    with watched.client() as client:
        storage = client.get("/storage").json()
    ratio = "adamix_full_copies_bytes / (adamix_backbone_bytes + adamix_adapters_bytes)"
    assert round(prometheus.value(ratio), 3) == storage["ratio"]
    assert prometheus.value("adamix_saved_bytes") == storage["saved_bytes"]


@needs_prometheus
def test_batch_shape(prometheus: Prometheus) -> None:
    """Requests of two rows of one task, one after the other, are batches of two rows and one
    task."""
    for what, mean in (("rows", 2), ("tasks", 1)):
        rate = f"rate(adamix_batch_{what}_sum[1m]) / rate(adamix_batch_{what}_count[1m])"
        assert prometheus.value(rate) == pytest.approx(mean)
    assert prometheus.value("adamix_batch_rows_count") == 18


@needs_prometheus
def test_where_adapters_are(prometheus: Prometheus) -> None:
    """The two tasks that were asked are on the device, the others on disk; loads say the same."""
    tiers = prometheus.by("tier", "sum by (tier) (adamix_adapter_loaded)")
    assert tiers == {"device": 2, "disk": len(TASKS) - 2}
    assert prometheus.value("adamix_adapter_loads_total - adamix_adapter_evictions_total") == 2


@needs_prometheus
def test_the_alerts_are_loaded_and_quiet(prometheus: Prometheus) -> None:
    """Prometheus evaluates every alert of deploy/alerts.yml without an error, and a service that is
    well raises none."""
    (group,) = prometheus.ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [
        rule["alert"] for rule in ALERTS[0]["rules"]
    ]
    # unknown: before the first evaluation
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    prometheus.until("count(ALERTS) or vector(0)", 0)


@needs_prometheus
@pytest.mark.parametrize("panel", EXPRESSIONS)
def test_the_dashboard_has_data(prometheus: Prometheus, panel: str) -> None:
    """Every expression of the dashboard is one that Prometheus answers with at least a series."""
    assert prometheus.query(EXPRESSIONS[panel])


def names_and_labels(text: str) -> dict[str, set[str]]:
    """Every metric of ours that a text names, with the labels in braces behind it."""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(adamix_[a-z_]+[a-z])\b(?:\{([^}]*)\})?", text):
        found.setdefault(name, set()).update(re.findall(r"\w+", re.sub(r'"[^"]*"', "", selector)))
    return found


def test_what_is_named_exists(watched: Server) -> None:
    """Every metric and label that the dashboard, the alerts and the documents name is in a running
    service's /metrics."""
    with watched.client() as client:
        text = client.get("/metrics").text
    real: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for name in {sample.name, family.name if family.type == "histogram" else sample.name}:
                real.setdefault(name, {"job", "instance"}).update(sample.labels)
    sources = [
        *EXPRESSIONS.values(),
        *(rule["expr"] for group in ALERTS for rule in group["rules"]),
    ]
    sources += [(DEPLOY.parent / document).read_text() for document in DOCUMENTS]
    for source in sources:
        for name, labels in names_and_labels(source).items():
            assert labels <= real[name], (
                f"{name} has no label {labels - real[name]}: {source[:200]}"
            )
        for outcomes in re.findall(r'outcome=~?"([^"]*)"', source):
            assert set(outcomes.split("|")) <= set(OUTCOMES)
    assert sum(len(names_and_labels(source)) for source in sources) > 40
