"""The alerts, by Prometheus' own tool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RULES = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"][0]["rules"]


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    """promtool finds no fault in prometheus.yml, with the file for a key that compose mounts beside
    it, and the rules that it loads."""
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    (tmp_path / "key").touch()
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_alerts_are_raised_when_they_should_be() -> None:
    """Each alert is raised by the samples that are meant for it, and none by a busy, healthy
    service's."""
    promtool("test", "rules", "tests/alerts_test.yml")


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_an_alert_is_tested_and_explained(alert: str) -> None:
    """Each alert has a severity, a summary and what to do, is raised in the rules' tests, and is in
    docs/operate.md."""
    (rule,) = (rule for rule in RULES if rule["alert"] == alert)
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert (
        f'ALERTS{{alertname="{alert}", alertstate="firing"'
        in (ROOT / "tests/alerts_test.yml").read_text()
    )
    assert f"| `{alert}` |" in (ROOT / "docs/operate.md").read_text()
