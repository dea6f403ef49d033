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
    "deploymentStrategy": dict,
}
PODS = pytest.mark.parametrize(
    "pod", [POD, KSERVE["spec"]["predictor"]], ids=["deployment", "kserve"]
)


def validate(manifest: dict[str, Any]) -> None:
    """By the oldest Kubernetes that it is meant for and the newest whose schema is installed;
    unknown fields are errors."""
    for version in ("1.30", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "name",
    ["deployment", "service", "persistentvolumeclaim", "networkpolicy", "poddisruptionbudget"],
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


@PODS
def test_the_container_may_little(pod: dict[str, Any]) -> None:
    """The service runs as the image's user, with a root that it cannot write to, no capability,
    the runtime's filter of system calls and no token of the cluster's, within limits of memory,
    processor and disk."""
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}\n" in (ROOT / "Dockerfile").read_text()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    for volume in pod["volumes"]:
        assert volume.keys() <= {"name", "persistentVolumeClaim", "emptyDir"}
        assert volume.get("emptyDir", {"sizeLimit": ""}).keys() == {"sizeLimit"}


@PODS
def test_a_service_s_name_does_not_set_the_port(pod: dict[str, Any]) -> None:
    """Kubernetes adds no variables of Services to the pod, and the port is said: it is the
    container's."""
    (container,) = pod["containers"]
    assert pod["enableServiceLinks"] is False
    (port,) = container["ports"]
    assert {"name": "ADAMIX_PORT", "value": str(port["containerPort"])} in container["env"]


@PODS
def test_a_container_has_keys_and_probes(pod: dict[str, Any]) -> None:
    """Both keys come from the secret, and the three probes ask for readiness and life."""
    (container,) = pod["containers"]
    keys = {
        one["name"]: one["valueFrom"]["secretKeyRef"]["key"]
        for one in container["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    assert keys == {"ADAMIX_ADMIN_KEY": "admin-key", "ADAMIX_API_KEY": "api-key"}
    asked = [
        container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")
    ]
    assert [one["path"].rsplit("/", 1)[1] for one in asked] in (
        ["ready", "ready", "health"],
        ["ready", "ready", "live"],
    )
    assert {one["port"] for one in asked} == {container["ports"][0]["name"]}


def test_one_instance_has_the_volume() -> None:
    """Neither manifest lets two instances run on one volume, not even while one replaces the
    other."""
    assert DEPLOYMENT["spec"]["replicas"] == 1
    assert DEPLOYMENT["spec"]["strategy"] == {"type": "Recreate"}
    predictor = KSERVE["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 1)
    assert predictor["deploymentStrategy"] == {"type": "Recreate"}
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert not [name for name in listed if "autoscaler" in name]
    claim = yaml.safe_load((FOLDER / "persistentvolumeclaim.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


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
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        spec = built[kind]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (port,) = built["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert port["port"] == built["Service"]["spec"]["ports"][0]["targetPort"]
    assert built["Service"]["metadata"]["name"] == "adamix"  # the alerts' job
    assert (
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == built["PersistentVolumeClaim"]["metadata"]["name"]
    )


def test_kustomize_closes_the_metrics(tmp_path: Path) -> None:
    """The component closed-metrics makes the pod ask for a key at /metrics, and gives Prometheus
    the one that the pod has."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: apt-get install kubernetes-client")
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    own = {"resources": ["kubernetes"], "components": ["kubernetes/closed-metrics"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    done = subprocess.run(
        ["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    validate(built["Deployment"])
    (container,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one for one in container["env"]}
    assert environment["ADAMIX_OPEN_METRICS"]["value"] == "false"
    key = environment["ADAMIX_API_KEY"]["valueFrom"]["secretKeyRef"]
    monitor = operator.ServiceMonitor.model_validate(built["ServiceMonitor"])
    read = monitor.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert read == built["ServiceMonitor"]
    (endpoint,) = read["spec"]["endpoints"]
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": key["name"], "key": key["key"]},
    }
