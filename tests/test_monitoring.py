"""Alert rules and dashboard: every metric and label in them is one that a server has."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from stacked import metrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "configs" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
ALERTS = {rule["alert"]: rule for group in RULES for rule in group["rules"]}
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))

_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
# Prometheus adds these to what it reads.
_ADDED = {"instance", "job", "le"}
_FACTS = ("name", "type")
_METRIC = re.compile(r"((?:stacked_|vllm:)\w+)(?:\{([^}]*)\})?")


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((name, rule["expr"]) for name, rule in ALERTS.items())
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


def ours() -> dict[str, set[str]]:
    """The names of our series, each with its labels."""
    assert metrics.MOST_SERIES
    found = {}
    for collector in REGISTRY._collector_to_names:
        if getattr(collector, "_name", "").startswith("stacked_"):
            families: list[Any] = [collector]
        else:  # one that counts when somebody looks
            families = [each for each in collector.collect() if each.name.startswith("stacked_")]
        for family in families:
            name, kind = (getattr(family, f"_{a}", None) or getattr(family, a) for a in _FACTS)
            found |= {name + suffix: {*family._labelnames} for suffix in _SUFFIXES[kind]}
    return found


def vllms() -> set[str]:
    """The names of vLLM's series, read from its source: importing it takes long."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent.joinpath("v1/metrics/loggers.py").read_text(encoding="utf-8")
    kinds = re.findall(r'_(counter|gauge|histogram)_cls\(\s*name="(vllm:\w+)"', source)
    return {name + suffix for kind, name in kinds for suffix in _SUFFIXES[kind]}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_is_a_real_one(where: str, expression: str) -> None:
    known, of_vllm = ours(), vllms()
    used: set[str] = set()
    for name, matchers in _METRIC.findall(expression):
        assert name in known.keys() | of_vllm, f"{where}: there is no metric {name}"
        labels = set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r'"[^"]*"', '""', matchers)))
        assert name in of_vllm or labels <= known[name] | _ADDED, f"{where}: labels of {name}"
        used |= known.get(name, set())
    assert _METRIC.search(expression) or where == "StackedDown"
    for listed in re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", expression):
        labels = {label.strip() for label in listed.split(",")}
        assert labels <= used | _ADDED, f"{where}: {labels - used}"


def test_every_metric_of_ours_is_in_a_panel() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    used = {name for name, _ in _METRIC.findall(shown)}
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in ours()}
    assert families == {re.sub("_(total|bucket|sum|count)$", "", n) for n in used if n in ours()}


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_an_alert_is_whole_and_explained(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "0s"))
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"| `{rule['alert']}` |" in manual


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus' promtool")
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(ROOT / "tests" / "alerts.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = {
        (p["x"] + dx, p["y"] + dy) for p in places for dx in range(p["w"]) for dy in range(p["h"])
    }
    assert len(taken) == sum(place["w"] * place["h"] for place in places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
