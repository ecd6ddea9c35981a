"""compose.yaml and the manifests of engines: what they name exists, nothing has more rights than it needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from placement.client.pulled import CURRENT, MAP
from placement.exporters.engines import exporter_for

# pytest imports tests by their path and leaves sys.path alone; this lets them import commands.py
sys.path += [str(Path(__file__).parent)]

from commands import check_command

REPOSITORY = Path(__file__).parents[2]


def test_compose_names_what_exists() -> None:
    """Services, volumes, secrets and files that are named; images have versions; ports of this machine alone;
    no service takes all memory."""
    document = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    services = document["services"]
    assert {"placement", "postgres", "prometheus"} <= set(services)
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}, name
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
