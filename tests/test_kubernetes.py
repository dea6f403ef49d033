"""The Kubernetes manifests, against the schemas of what they are for. No cluster has run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/kubernetes"
DEPLOYMENT, KSERVE = (
    yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("deployment", "kserve")
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
# What a predictor of KServe takes beside a pod's own fields, and of which type:
# V1beta1PredictorSpec of the package kserve 0.21.0, as far as it concerns a
# container of one's own. The package itself would bring a hundred others.
PREDICTOR = {
    "minReplicas": int,
    "maxReplicas": int,
    "scaleTarget": int,
    "scaleMetric": str,
    "containerConcurrency": int,
    "timeout": int,
    "canaryTrafficPercent": int,
}


def validate(manifest: dict[str, Any]) -> None:
    """By the oldest Kubernetes that it is meant for and the newest whose schema is installed;
    unknown fields are errors."""
    for version in ("1.30", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "name", ["deployment", "service", "persistentvolumeclaim", "horizontalpodautoscaler"]
)
def test_a_manifest_is_kubernetes(name: str) -> None:
    """Each object of Kubernetes' own fits its schema."""
    validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("servicemonitor", operator.ServiceMonitor), ("prometheusrule", operator.PrometheusRule)],
)
def test_a_manifest_is_the_operator_s(name: str, kind: Any) -> None:
    """Each object of the Prometheus operator is one, and has no field that the operator does not
    know."""
    manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    read = kind.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == manifest


def test_the_operator_gets_the_same_alerts() -> None:
    """prometheusrule.yaml holds the groups of deploy/alerts.yml."""
    rule = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())


def test_kserve_s_predictor_is_a_pod() -> None:
    """The InferenceService's predictor is a valid pod but for fields of KServe's, and says that it
    speaks protocol v2."""
    own = {
        name: type(value)
        for name, value in KSERVE["spec"]["predictor"].items()
        if name in PREDICTOR
    }
    assert own.items() <= PREDICTOR.items()
    assert (KSERVE["apiVersion"], KSERVE["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert KSERVE["spec"].keys() == {"predictor"}
    pod = {
        name: value for name, value in KSERVE["spec"]["predictor"].items() if name not in PREDICTOR
    }
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "adamix"}, "spec": pod})
    (container,) = pod["containers"]
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]


@pytest.mark.parametrize("pod", [POD, KSERVE["spec"]["predictor"]], ids=["deployment", "kserve"])
def test_the_container_may_little(pod: dict[str, Any]) -> None:
    """The service runs as the image's user, with a root that it cannot write to and no capability,
    within limits."""
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}\n" in (ROOT / "Dockerfile").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


def test_kustomize_builds_the_base() -> None:
    """`kubectl kustomize` renders all that the base lists, with the image's tag; every name
    referred to exists."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: apt-get install kubernetes-client")
    done = subprocess.run(
        ["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert {kind.lower() + ".yaml" for kind in built} == set(listed)
    pod = built["Deployment"]["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == "adamix-serve:0.1.0"
    assert built["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (
        built["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= built["Service"]["metadata"]["labels"].items()
    )
    assert built["Service"]["metadata"]["name"] == "adamix"  # the alerts' job
    assert (
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == built["PersistentVolumeClaim"]["metadata"]["name"]
    )
