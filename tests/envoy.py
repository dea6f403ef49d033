"""Envoy with the configuration that is shipped, in front of replicas of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from benchmarks.http.server import answers
from tests.buckets import free_ports, program

CONFIGURATION = Path(__file__).parent.parent / "deploy/kubernetes-many/envoy.yaml"
START_SECONDS = 60


def validate(configuration: Path) -> str:
    """What Envoy says of a configuration; nothing but its last line if it has no objection. Raises
    CalledProcessError where it would not start."""
    command = [program("envoy"), "--mode", "validate", "--log-level", "warning"]
    done = subprocess.run(
        [*command, "--config-path", str(configuration)], capture_output=True, text=True, check=True
    )
    return done.stderr + done.stdout


@contextlib.contextmanager
def envoy(replicas: Sequence[str], folder: Path) -> Iterator[str]:
    """Envoy's address, in front of the replicas with these. Only what cannot be had without a
    cluster's DNS is another than in the file that is shipped: the addresses."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    (port,) = free_ports(1)
    (listener,) = configuration["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    (cluster,) = configuration["static_resources"]["clusters"]
    del cluster["cluster_type"]
    cluster["type"] = "STATIC"
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {
            "endpoint": {
                "address": {
                    "socket_address": {"address": place.hostname, "port_value": place.port},
                }
            }
        }
        for place in map(urlsplit, replicas)
    ]
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(configuration))
    command = [program("envoy"), "--config-path", str(path), "--disable-hot-restart"]
    process = subprocess.Popen(
        [*command, "--concurrency", "1", "--log-level", "off"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{url}/envoy/ready"):
            assert time.monotonic() < deadline, "Envoy did not start"
            assert process.poll() is None, "Envoy ended"
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()
