"""The Kubernetes manifests, against the schemas of what they are for. No cluster has run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/kubernetes"
MANY = ROOT / "deploy/kubernetes-many"
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


def as_the_operator_reads(kind: str, manifest: dict[str, Any]) -> Any:
    """The fields that the Prometheus operator knows."""
    # three seconds to import, which not every process of a test run needs
    from cloudcoil.models.prometheus_operator import v1 as operator

    read = getattr(operator, kind).model_validate(manifest)
    return read.model_dump(mode="json", by_alias=True, exclude_unset=True)


@pytest.mark.parametrize(
    "name",
    ["deployment", "service", "persistentvolumeclaim", "networkpolicy", "poddisruptionbudget"],
)
def test_a_manifest_is_kubernetes(name: str) -> None:
    """Each object of Kubernetes' own fits its schema."""
    validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("servicemonitor", "ServiceMonitor"), ("prometheusrule", "PrometheusRule")],
)
def test_a_manifest_is_the_operator_s(name: str, kind: str) -> None:
    """Each object of the Prometheus operator is one, and has no field that the operator does not
    know."""
    manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert as_the_operator_reads(kind, manifest) == manifest


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


def built(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send to a cluster."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: apt-get install kubernetes-client")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kustomize_builds_the_base() -> None:
    """`kubectl kustomize` renders all that the base lists, with the image's tag; every name
    referred to exists."""
    base = {manifest["kind"]: manifest for manifest in built(FOLDER)}
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert {kind.lower() + ".yaml" for kind in base} == set(listed)
    pod = base["Deployment"]["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == "adamix-serve:0.1.0"
    assert base["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (
        base["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        <= base["Service"]["metadata"]["labels"].items()
    )
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        spec = base[kind]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (port,) = base["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert port["port"] == base["Service"]["spec"]["ports"][0]["targetPort"]
    assert base["Service"]["metadata"]["name"] == "adamix"  # the alerts' job
    assert (
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == base["PersistentVolumeClaim"]["metadata"]["name"]
    )


def test_kustomize_closes_the_metrics(tmp_path: Path) -> None:
    """The component closed-metrics makes the pod ask for a key at /metrics, and gives Prometheus
    the one that the pod has."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    own = {"resources": ["kubernetes"], "components": ["kubernetes/closed-metrics"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    closed = {manifest["kind"]: manifest for manifest in built(tmp_path)}
    validate(closed["Deployment"])
    (container,) = closed["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one for one in container["env"]}
    assert environment["ADAMIX_OPEN_METRICS"]["value"] == "false"
    key = environment["ADAMIX_API_KEY"]["valueFrom"]["secretKeyRef"]
    read = as_the_operator_reads("ServiceMonitor", closed["ServiceMonitor"])
    assert read == closed["ServiceMonitor"]
    (endpoint,) = read["spec"]["endpoints"]
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": key["name"], "key": key["key"]},
    }


@pytest.mark.parametrize("base", ["kubernetes", "kubernetes-many"])
def test_kustomize_mounts_a_keys_file(base: str, tmp_path: Path) -> None:
    """The component keys mounts a secret's keys file as a folder that the pod's group alone reads,
    tells the service where it is, and gives Prometheus a key."""
    for folder in (FOLDER, MANY):
        shutil.copytree(folder, tmp_path / folder.name)
    own = {"resources": [base], "components": ["kubernetes/keys"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = {(each["kind"], each["metadata"]["name"]): each for each in built(tmp_path)}
    deployment = found["Deployment", "adamix"]
    validate(deployment)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert mount == {"name": "keys", "mountPath": "/keys", "readOnly": True}
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "keys")
    assert volume["secret"] == {"secretName": "adamix-keys", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["ADAMIX_KEYS_FILE"] == "/keys/keys.toml"
    monitor = found["ServiceMonitor", "adamix"]
    assert as_the_operator_reads("ServiceMonitor", monitor) == monitor
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "adamix", "key": "metrics-key"}


@pytest.fixture(scope="module")
def many() -> dict[str, dict[str, Any]]:
    """The objects of the replicas behind Envoy, each by its kind and name."""
    return {
        f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in built(MANY)
    }


def test_the_replicas_are_kubernetes(many: dict[str, dict[str, Any]]) -> None:
    """Each object of the replicas behind Envoy fits its schema; none of them is a volume."""
    for name, manifest in many.items():
        if not manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            validate(manifest)
        assert not name.startswith("PersistentVolumeClaim")


def test_replicas_share_a_bucket(many: dict[str, dict[str, Any]]) -> None:
    """Several replicas have the bucket's address, its keys and one admin key that must be there,
    keep copies in a folder of their own, and are replaced without one missing."""
    deployment = many["Deployment adamix"]["spec"]
    assert deployment["replicas"] > 1
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    store, keys = container["envFrom"]
    assert keys == {"secretRef": {"name": "adamix-bucket", "optional": True}}
    said = many[f"ConfigMap {store['configMapRef']['name']}"]["data"]
    assert said["ADAMIX_STORE"].startswith("s3://")
    given = {one["name"]: one for one in container["env"]}
    assert given["ADAMIX_ADMIN_KEY"]["valueFrom"]["secretKeyRef"]["optional"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    folders = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert given["ADAMIX_CACHE"]["value"].startswith("/data/")
    assert folders["/data"].keys() == {"name", "emptyDir"}
    room = int(folders["/data"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
    assert int(given["ADAMIX_CACHE_BYTES"]["value"]) < room


def test_envoy_finds_the_replicas(many: dict[str, dict[str, Any]]) -> None:
    """Envoy asks for the name and port of the headless Service, which stands for the replicas'
    pods; its own Service and probes have the port that it listens on."""
    (volume,) = many["Deployment adamix-envoy"]["spec"]["template"]["spec"]["volumes"]
    mounted = many[f"ConfigMap {volume['configMap']['name']}"]["data"]["envoy.yaml"]
    assert mounted == (MANY / "envoy.yaml").read_text()
    configuration = yaml.safe_load(mounted)["static_resources"]
    (cluster,) = configuration["clusters"]
    (found,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = found["endpoint"]["address"]["socket_address"]
    headless = many[f"Service {address['address']}"]["spec"]
    assert headless["clusterIP"] == "None"
    replica = many["Deployment adamix"]["spec"]["template"]
    assert headless["selector"].items() <= replica["metadata"]["labels"].items()
    assert address["port_value"] == replica["spec"]["containers"][0]["ports"][0]["containerPort"]
    (listener,) = configuration["listeners"]
    envoy = many["Deployment adamix-envoy"]["spec"]["template"]
    (port,) = envoy["spec"]["containers"][0]["ports"]
    assert port["containerPort"] == listener["address"]["socket_address"]["port_value"]
    clients = many["Service adamix-envoy"]["spec"]
    assert clients["ports"][0]["targetPort"] == port["name"]
    assert clients["selector"].items() <= envoy["metadata"]["labels"].items()
    monitor = many["ServiceMonitor adamix"]["spec"]["selector"]["matchLabels"]
    watched = [
        name
        for name, one in many.items()
        if name.startswith("Service ") and monitor.items() <= one["metadata"]["labels"].items()
    ]
    assert watched == ["Service adamix"]  # each replica is scraped once


def test_envoy_may_little(many: dict[str, dict[str, Any]]) -> None:
    """Envoy runs without root, capabilities and a token of the cluster's, within limits; its
    requests have longer to end than Envoy lets them run."""
    pod = many["Deployment adamix-envoy"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 60 < pause < pod["terminationGracePeriodSeconds"]


def test_who_speaks_with_whom(many: dict[str, dict[str, Any]]) -> None:
    """The replicas are asked by Envoy and by labelled namespaces alone, and ask nobody but DNS and
    HTTPS outside the cloud's metadata; Envoy asks the replicas and DNS alone."""
    replica = many["NetworkPolicy adamix"]["spec"]
    envoy = many["NetworkPolicy adamix-envoy"]["spec"]
    for spec in (replica, envoy):
        assert spec["policyTypes"] == ["Ingress", "Egress"]
    pods, namespaces = replica["ingress"][0]["from"]
    labels = many["Deployment adamix-envoy"]["spec"]["template"]["metadata"]["labels"]
    assert pods == {"podSelector": {"matchLabels": labels}}
    assert namespaces == {"namespaceSelector": {"matchLabels": {"adamix.io/client": "true"}}}
    asked = {
        name: [sorted({port["port"] for port in rule["ports"]}, key=str) for rule in spec["egress"]]
        for name, spec in (("replica", replica), ("envoy", envoy))
    }
    assert asked == {"replica": [[53], [443]], "envoy": [["http"], [53]]}
    (outside,) = replica["egress"][1]["to"]
    assert outside["ipBlock"]["except"] == ["169.254.0.0/16"]


def test_compose_s_profile_is_the_same(many: dict[str, dict[str, Any]]) -> None:
    """In compose's profile `scale` Envoy has the same configuration and version, and finds the
    replicas by the same name; the bucket can be reached by them alone, and is published nowhere."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    profile = {name for name, one in services.items() if one.get("profiles") == ["scale"]}
    assert profile == {"replica", "bucket", "envoy"}
    envoy = services["envoy"]
    assert envoy["volumes"] == [
        f"./{(MANY / 'envoy.yaml').relative_to(ROOT)}:/etc/envoy/envoy.yaml:ro"
    ]
    pod = many["Deployment adamix-envoy"]["spec"]["template"]["spec"]
    versions = [each.rsplit("v", 1)[1] for each in (envoy["image"], pod["containers"][0]["image"])]
    assert versions[0].partition("@")[0] == versions[1]
    assert services["replica"]["networks"]["default"]["aliases"] == ["adamix-replicas"]
    assert [name for name, one in services.items() if "bucket" in one.get("networks", ())] == [
        "replica",
        "bucket",
    ]
    assert compose["networks"]["bucket"] == {"internal": True}
    assert not services["replica"]["ports"]
    assert "ports" not in services["bucket"]
