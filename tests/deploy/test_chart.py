"""The Helm chart: linted, rendered with Helm itself, and held to the schemas of Kubernetes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# pytest imports tests by their path and leaves sys.path alone; this lets them import helm.py and commands.py
sys.path += [str(Path(__file__).parent)]

import helm
from commands import check_command
from helm import CHART, render

from placement import __version__

SINGLE: tuple[str, ...] = ()
SHARED = ("--values", str(CHART / "values-postgresql.yaml"))
INGRESS = ("--set", "ingress.enabled=true,ingress.host=placement.example.com,ingress.proxies=10.0.0.0/8")
TLS = ("--set", "ingress.tlsSecret=certificate")
MONITOR = ("--set", "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=prometheus")
FULL = (*SHARED, *INGRESS, *TLS, *MONITOR)
KINDS = {"Deployment", "Service", "NetworkPolicy"}

pytestmark = pytest.mark.skipif(
    helm.program() is None, reason="Helm is not installed: its wheel is for Linux on x86-64"
)


def pod_of(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = documents["Deployment"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("values", [SINGLE, SHARED, FULL], ids=["single", "shared", "full"])
def test_helm_finds_nothing(values: tuple[str, ...]) -> None:
    done = helm.run("lint", "--strict", "--quiet", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize(
    "values", [SINGLE, SHARED, FULL, (*SINGLE, *INGRESS)], ids=["single", "shared", "full", "ingress"]
)
def test_what_is_rendered_fits_the_schemas(values: tuple[str, ...], version: str) -> None:
    """Those of the oldest Kubernetes that the chart names, and of later ones; without a key that they do not know."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for kind, document in render(*values).items():
        if kind != "ServiceMonitor":  # of an operator, which has its own schemas
            validate.validate(document, version, strict=True)


def test_each_set_up_has_what_it_needs_and_no_more() -> None:
    """A volume for one replica; for several a queue to share, a budget of disruptions and pods that are spread."""
    single, shared, full = render(), render(*SHARED), render(*FULL)
    assert set(single) == KINDS | {"PersistentVolumeClaim"}
    assert set(shared) == KINDS | {"PodDisruptionBudget"}
    assert set(full) == KINDS | {"PodDisruptionBudget", "Ingress", "ServiceMonitor"}
    assert single["Deployment"]["spec"]["strategy"]["type"] == "Recreate"
    assert "topologySpreadConstraints" not in pod_of(single)
    assert {one["topologyKey"] for one in pod_of(shared)["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    for documents in (single, shared, full):
        labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
        selectors = [documents["Deployment"]["spec"]["selector"]["matchLabels"]]
        selectors += [
            documents["Service"]["spec"]["selector"],
            documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        ]
        selectors += [
            one["spec"]["selector"]["matchLabels"] for one in documents.values() if one["kind"] == "PodDisruptionBudget"
        ]
        assert all(selector and selector.items() <= labels.items() for selector in selectors)


@pytest.mark.parametrize("values", [SINGLE, FULL], ids=["single", "full"])
def test_pods_have_no_more_rights_than_they_need(values: tuple[str, ...]) -> None:
    """No root, no capability, nothing writable but volumes; probes, limits, known commands; secrets by reference."""
    pod = pod_of(render(*values))
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["initContainers"], *pod["containers"]]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        check_command(list(container.get("args", [])))
        assert all("valueFrom" in one for one in container.get("env", []) if one["name"] != "FORWARDED_ALLOW_IPS")
    (main,) = pod["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(main)
    assert main["lifecycle"]["preStop"]["sleep"]["seconds"] < pod["terminationGracePeriodSeconds"]


def test_the_compiled_code_of_the_image_is_not_hidden() -> None:
    """The volume over the cache's folder is filled from the image first: else each start compiles for a minute."""
    pod = pod_of(render())
    first, main = pod["initContainers"][0], pod["containers"][0]
    (cache,) = [one["name"] for one in main["volumeMounts"] if one["mountPath"] == "/var/cache/placement"]
    assert {one["name"]: one["mountPath"] for one in first["volumeMounts"]} == {cache: first["command"][-1]}
    assert first["command"][0] == "cp" and first["command"][-2] == "/var/cache/placement/."


@pytest.mark.parametrize(("cpu", "jobs"), [("4", 2), ("16", 8), ("1", 1), ("1500m", 1), ("5500m", 2), ("6.5", 3)])
def test_solves_side_by_side_follow_the_cpu_limit(cpu: str, jobs: int) -> None:
    words = pod_of(render("--set-string", f"resources.limits.cpu={cpu},resources.requests.cpu=1"))["containers"][0][
        "args"
    ]
    assert f"--max-jobs={jobs}" in words
    assert "--max-jobs=7" in pod_of(render("--set", "maxJobs=7"))["containers"][0]["args"]


def test_several_replicas_share_by_name_and_one_keeps_its_own() -> None:
    """A replica of several is named as its pod; the only one has a lasting name, and so its jobs at once."""
    single, shared = pod_of(render())["containers"][0], pod_of(render(*SHARED))["containers"][0]
    assert "--executor=placement" in single["args"] and "env" not in single
    assert {"--executor=$(POD_NAME)", "--blobs=s3://placement/store"} <= set(shared["args"])
    assert {one["name"] for one in shared["env"]} == {"PLACEMENT_DATABASE_URL", "POD_NAME"}
    assert shared["envFrom"] == [{"secretRef": {"name": "placement-s3"}}]


def test_an_ingress_controller_reaches_the_service() -> None:
    """The network policy lets its namespace in, the service believes its pods, and the rule leads to the Service."""
    documents = render(*INGRESS, *TLS, "--set", "networkPolicy.from[0].ipBlock.cidr=10.1.0.0/16")
    (rule,) = documents["NetworkPolicy"]["spec"]["ingress"]
    spaces = [one["namespaceSelector"]["matchLabels"] for one in rule["from"] if "namespaceSelector" in one]
    assert {"kubernetes.io/metadata.name": "ingress-nginx"} in spaces
    assert {"kubernetes.io/metadata.name": "monitoring"} in spaces
    assert {"ipBlock": {"cidr": "10.1.0.0/16"}} in rule["from"]
    (main,) = pod_of(documents)["containers"]
    assert rule["ports"] == [{"protocol": "TCP", "port": main["ports"][0]["name"]}]
    assert {"name": "FORWARDED_ALLOW_IPS", "value": "10.0.0.0/8"} in main["env"]
    spec = documents["Ingress"]["spec"]
    backend = spec["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == documents["Service"]["metadata"]["name"]
    assert backend["port"]["name"] == documents["Service"]["spec"]["ports"][0]["name"]
    assert spec["tls"] == [{"hosts": [spec["rules"][0]["host"]], "secretName": "certificate"}]
    without = render()["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}} not in without


def test_the_monitor_has_a_token_of_its_own() -> None:
    """Prometheus reads metrics and nothing else; its token is made known before the service starts."""
    documents = render(*FULL)
    (endpoint,) = documents["ServiceMonitor"]["spec"]["endpoints"]
    key = endpoint["authorization"]["credentials"]
    (made,) = [one for one in pod_of(documents)["initContainers"] if "--scope=metrics" in one.get("args", [])]
    assert f"--token-file=/secrets/{key['key']}" in made["args"]
    (secret,) = [one["secret"] for one in pod_of(documents)["volumes"] if "secret" in one]
    assert secret["secretName"] == key["name"] and key["key"] in {one["key"] for one in secret["items"]}
    assert endpoint["port"] == documents["Service"]["spec"]["ports"][0]["name"]
    labels = documents["Service"]["metadata"]["labels"]
    assert documents["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert documents["ServiceMonitor"]["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("replicas=3", "set database.postgresql to true and store.bucket to s3://BUCKET/FOLDER"),
        ("replicas=3,database.postgresql=true", "store.bucket"),
        ("ingress.enabled=true", "ingress.host"),
        ("ingress.enabled=true,ingress.host=a.example", "ingress.proxies"),
        ("replicas=0", "/replicas"),
        ("replica=3", "'replica' not allowed"),
        ("store.bucket=gs://other/place", "/store/bucket"),
        ("resources.limits.cpu=many", "/resources/limits/cpu"),
        ("image.digest=sha256:12", "/image/digest"),
        ("networkPolicy.egressPorts={70000}", "/networkPolicy/egressPorts/0"),
        ("volume.size=-1", "/volume/size"),
        ("store.cache=0", "/store/cache"),
        ("resources.limits.memory=-1", "/resources/limits/memory"),
        ("resources.limits.cpu=0m", "/resources/limits/cpu"),
        ("resources.requests.memory=99Gi", "resources.requests.memory=99Gi is above resources.limits.memory=16Gi"),
        ("resources.requests.cpu=4001m", "resources.requests.cpu=4001m is above resources.limits.cpu=4"),
        ("ingress.proxies=999.1.1.1/99", 'ingress.proxies: "999.1.1.1/99" is no address'),
        ("ingress.proxies= ", 'ingress.proxies: " " is no address'),
        ("ingress.host=a..b", "/ingress/host"),
        ("image.tag=a b", "/image/tag"),
        ("image.repository=a # b", "/image/repository"),
        ("networkPolicy.from[0].foo=1", "/networkPolicy/from/0"),
        ("extraArgs={--port=9000}", "extraArgs: --port=9000 is the chart's to set"),
        ("secret=null", "secret"),
        ("replicas=null", "replicas"),
        ("keepDays=null", "keepDays"),
        ("image=null", "image"),
        ("ingress=null", "ingress"),
    ],
)
def test_wrong_values_are_named(values: str, said: str) -> None:
    """By the schema of values or in words, never by a failed template; nothing is rendered of them."""
    done = helm.run("template", "placement", str(CHART), "--set", values)
    assert done.returncode and said in done.stderr and not done.stdout
    assert "nil pointer" not in done.stderr


@pytest.mark.parametrize("release", ["a.b.c", "9abc"])
def test_a_release_that_cannot_name_a_service_is_refused(release: str) -> None:
    """Helm allows both names and Kubernetes would refuse the Service after the rest is applied."""
    done = helm.run("template", release, str(CHART))
    assert done.returncode and f'"{release}"' in done.stderr and not done.stdout


def test_words_that_yaml_would_misread_stay_words() -> None:
    """A comment sign, a colon and the word true reach Kubernetes as they are given."""
    documents = render(*SHARED, "--set", "store.bucket=s3://a/b: c # d", "--set-string", "secret=true", release="true")
    assert "--blobs=s3://a/b: c # d" in pod_of(documents)["containers"][0]["args"]
    (secret,) = [one["secret"] for one in pod_of(documents)["volumes"] if "secret" in one]
    assert secret["secretName"] == "true"
    assert documents["Service"]["spec"]["selector"]["app.kubernetes.io/instance"] == "true"


def test_the_chart_is_of_this_version() -> None:
    """Without a tag the image is that of this release, and a digest stands in place of a tag."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    assert pod_of(render())["containers"][0]["image"] == f"expert-placement:{__version__}"
    digest = f"sha256:{'ab' * 32}"
    pinned = pod_of(render("--set", f"image.digest={digest},image.repository=registry.example/placement"))
    assert {one["image"] for one in [*pinned["initContainers"], *pinned["containers"]]} == {
        f"registry.example/placement@{digest}"
    }


def test_the_engines_find_the_service() -> None:
    """The address in the manifests of engines is that of the chart's Service in a release called placement."""
    service = render()["Service"]
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for path in (CHART.parent / "engines").glob("*.yaml"):
        assert address in path.read_text(), path.name
