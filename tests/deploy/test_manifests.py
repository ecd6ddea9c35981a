"""compose.yaml and the manifests of Kubernetes: what they name exists, nothing has more rights than it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from placement.cli import app
from placement.client.pulled import CURRENT, MAP
from placement.exporters.engines import exporter_for

REPOSITORY = Path(__file__).parents[2]
KUBERNETES = REPOSITORY / "deploy" / "kubernetes"


def check_command(words: list[str]) -> None:
    """The commands and options that a manifest names are there."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {name for param in command.params for name in param.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_compose_names_what_exists() -> None:
    """Services, volumes, secrets and files that are named; images have versions; ports of this machine alone."""
    document = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    services = document["services"]
    assert {"placement", "postgres", "prometheus"} <= set(services)
    for name, service in services.items():
        if "build" in service:
            assert service["read_only"] and service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"]
            check_command(service["command"])
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", service["image"]), name
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (REPOSITORY / source).is_file() if source.startswith(".") else source in document["volumes"]
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert set(document["volumes"]) <= used
    scrape = yaml.safe_load((REPOSITORY / "deploy" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["placement:8000"]
    assert scrape["authorization"]["credentials_file"] == "/run/secrets/token"


def manifests(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would apply."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("folder", ["single", "shared"])
def test_the_manifests_fit_the_schemas(folder: str) -> None:
    """Those of Kubernetes, without a key that they do not know."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for manifest in manifests(folder):
        validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("folder", ["single", "shared"])
def test_pods_have_no_more_rights_than_they_need(folder: str) -> None:
    """No root, no capability, nothing writable but volumes; probes, limits, known commands; secrets by reference."""
    by_kind = {manifest["kind"]: manifest for manifest in manifests(folder)}
    assert ("PersistentVolumeClaim" in by_kind) == (folder == "single")
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["initContainers"], *pod["containers"]]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        check_command(container["args"])
        for variable in container["env"]:
            assert "valueFrom" in variable, "no secret stands in a manifest"
    main = pod["containers"][0]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(main)
    claims = [one for one in pod["volumes"] if "persistentVolumeClaim" in one]
    assert bool(claims) == (folder == "single")
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        by_kind["Service"]["spec"]["selector"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


@pytest.mark.parametrize("name", ["vllm-statefulset", "sglang-leaderworkerset"])
def test_engines_start_with_what_was_pulled(name: str) -> None:
    """The init container's command is there, its folder is the engine's, and the engine is told of the file that the
    pull writes for it; what Kubernetes knows of the manifest fits its schema."""
    manifest = yaml.safe_load((REPOSITORY / "deploy" / "engines" / f"{name}.yaml").read_text())
    spec = manifest["spec"]
    template = spec["template"] if "template" in spec else spec["leaderWorkerTemplate"]["workerTemplate"]
    (first,), (engine,) = template["spec"]["initContainers"], template["spec"]["containers"]
    words = first["args"]
    check_command(list(words))
    assert words[0] == "pull" and words[words.index("--for") + 1] in name
    folder = words[words.index("-o") + 1]
    exporter = exporter_for(words[words.index("--for") + 1])
    told = yaml.safe_dump(engine["args"], width=10_000) + yaml.safe_dump(engine.get("env", []))
    assert f"{folder}/{CURRENT}/{MAP}{exporter.suffixes[0]}" in told
    mounts = [{one["name"]: one for one in container["volumeMounts"]} for container in (first, engine)]
    assert mounts[0]["maps"]["mountPath"] == mounts[1]["maps"]["mountPath"] == folder
    assert mounts[1]["maps"]["readOnly"]
    assert first["securityContext"]["readOnlyRootFilesystem"] and first["securityContext"]["capabilities"] == {
        "drop": ["ALL"]
    }
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    known = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template["spec"]}
    volumes = {one["name"] for one in template["spec"]["volumes"]}
    claimed = {one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", [])}
    assert {"maps", "tmp", "models"} == volumes | claimed
    for one in [known, manifest] if manifest["kind"] == "StatefulSet" else [known]:
        validate.validate(one, "1.34", strict=True)
