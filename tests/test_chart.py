"""The Helm chart, linted and rendered by Helm itself; no cluster is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacked import __version__
from stacked.config import Config, load_server
from stacked.config.server import Listener

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "stacked"
HELM = Path(sys.executable).parent / "helm"
OPEN = ("auth.open=true",)
FLEET = (
    "replicas=3",
    "database.secret=records",
    "contents.claim=shared",
    "auth.secret=keys",
    "tls.secret=certificate",
    "serviceMonitor.enabled=true",
)


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *words], capture_output=True, text=True, timeout=60)


def rendered(*settings: str) -> dict[str, Any]:
    """The manifests by kind, and the service that has no address of its own as `Pods`."""
    found = helm("template", "r", str(CHART), *(f"--set={each}" for each in settings))
    assert found.returncode == 0, found.stderr
    manifests = [each for each in yaml.safe_load_all(found.stdout) if each]
    return {
        "Pods"
        if each["spec" if "spec" in each else "data"].get("clusterIP")
        else each["kind"]: each
        for each in manifests
    }


def served(manifests: dict[str, Any], place: Path) -> Config:
    """What a pod's server reads."""
    file = place / "config.yaml"
    file.write_text(manifests["ConfigMap"]["data"]["config.yaml"], encoding="utf-8")
    config = load_server(file)
    assert isinstance(config, Config)
    return config


def container_of(manifests: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = manifests["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("settings", [OPEN, FLEET])
def test_chart_passes_helms_linter(settings: tuple[str, ...]) -> None:
    found = helm("lint", "--strict", str(CHART), *(f"--set={each}" for each in settings))
    assert found.returncode == 0, found.stdout


def test_one_server_needs_nothing_but_a_word_on_who_may_call(tmp_path: Path) -> None:
    manifests = rendered(*OPEN)
    assert set(manifests) == {"ConfigMap", "Service", "Pods", "StatefulSet"}
    config = served(manifests, tmp_path)
    assert (config.server.auth.none, config.fleet) == (True, None)
    assert config.server.metrics == Listener(host="0.0.0.0", port=9090)
    _, container = container_of(manifests)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container["env"] is None
    assert container["image"] == f"stacked:{__version__}"


def test_replicas_with_a_database_are_a_fleet(tmp_path: Path) -> None:
    manifests = rendered(*FLEET)
    config = served(manifests, tmp_path)
    assert config.fleet is not None
    assert (config.server.auth.bearer, config.server.tls is not None) == (True, True)
    pod, container = container_of(manifests)
    variables = {each["name"]: each for each in container["env"]}
    assert variables["STACKED_DATABASE"]["valueFrom"] == {
        "secretKeyRef": {"name": "records", "key": "url"}
    }
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert variables["STACKED_CONTENTS"]["value"] == mounts["contents"]
    # Every path that the configuration names is there, from a volume or from a claim of the set.
    assert (config.server.auth.directory, container["args"]) == (mounts["keys"], [mounts["config"]])
    assert config.server.tls is not None
    assert Path(config.server.tls.cert).parent == Path(mounts["tls"])
    claims = manifests["StatefulSet"]["spec"]["volumeClaimTemplates"]
    there = {each["name"] for each in pod["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert there == set(mounts)
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_probes_requests_and_metrics_reach_what_listens(tmp_path: Path) -> None:
    manifests = rendered(*FLEET)
    config = served(manifests, tmp_path)
    pod, container = container_of(manifests)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert isinstance(config.server.metrics, Listener)
    assert ports == {"http": config.server.port, "metrics": config.server.metrics.port}
    probes = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    assert {(probe["port"], probe["scheme"]) for probe in probes.values()} == {("http", "HTTPS")}
    labels = manifests["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for service in ("Service", "Pods"):
        assert manifests[service]["spec"]["selector"].items() <= labels.items()
        assert {each["targetPort"] for each in manifests[service]["spec"]["ports"]} <= set(ports)
    monitor = manifests["ServiceMonitor"]["spec"]
    assert (
        monitor["selector"]["matchLabels"].items()
        <= manifests["Pods"]["metadata"]["labels"].items()
    )
    named = {each["name"] for each in manifests["Pods"]["spec"]["ports"]}
    assert {each["port"] for each in monitor["endpoints"]} <= named
    assert manifests["StatefulSet"]["spec"]["serviceName"] == manifests["Pods"]["metadata"]["name"]
    (command, seconds) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > config.server.drain_seconds + float(seconds)


def test_what_stands_in_the_values_wins(tmp_path: Path) -> None:
    settings = ("config.server.drain_seconds=5", "config.engine.max_loras=3")
    config = served(rendered(*OPEN, *settings), tmp_path)
    assert (config.server.drain_seconds, config.engine["max_loras"]) == (5, 3)
    assert config.server.port == 8080


def test_pods_start_again_when_their_configuration_has_changed() -> None:
    def checksum(*settings: str) -> str:
        template = rendered(*OPEN, *settings)["StatefulSet"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum() != checksum("config.server.drain_seconds=5")
    assert checksum() == checksum("data.size=1Gi")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "auth.secret"),
        (("auth.open=true", "replicas=2"), "database.secret"),
        (("auth.open=true", "database.secret=d"), "contents.claim"),
        (("auth.open=true", "contents.claim=c", "contents.address=s3://b"), "not both"),
    ],
)
def test_values_that_cannot_work_are_refused(settings: tuple[str, ...], said: str) -> None:
    found = helm("template", "r", str(CHART), *(f"--set={each}" for each in settings))
    assert found.returncode != 0
    assert said in found.stderr


def test_chart_has_the_version_of_the_package() -> None:
    text = (CHART / "Chart.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^(?:version|appVersion): (.+)$", text, re.MULTILINE) == [__version__] * 2
