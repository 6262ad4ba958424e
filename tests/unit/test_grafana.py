# SPDX-License-Identifier: Apache-2.0
"""Dashboards and rules ask only for what the switch exports, and are laid out soundly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from switch.metrics import FAMILIES

GRAFANA = Path(__file__).resolve().parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = yaml.safe_load((GRAFANA / "prometheus/rules.yml").read_text())
# What Prometheus and its client library add to every target.
GENERAL = {"up": {"job", "instance"}, "process_cpu_seconds_total": set(), "process_resident_memory_bytes": set()}
EVERYWHERE = {"instance", "job", "le", "quantile"}


def exported() -> dict[str, set[str]]:
    """Every metric name, as PromQL knows it, and its labels."""
    names: dict[str, set[str]] = dict(GENERAL)
    for family in FAMILIES.values():
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        for suffix in suffixes:
            names[family.name + suffix] = set(family.labels)
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                grouped = re.match(r"sum by \(([^)]*)\)", rule["expr"])
                labels = grouped.group(1).replace(" ", "").split(",") if grouped else ["worker"]
                names[rule["record"]] = set(labels)
    return names


def metrics_in(expression: str) -> set[str]:
    """Names of series: what is left of braces, brackets or operators that is neither function, keyword nor label."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\{[^}]*\}", " ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    found = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b(?!\s*\()", text))
    return {name for name in found if name not in {"and", "or", "unless", "bool", "offset"}}


def labels_in(expression: str) -> set[str]:
    chosen = re.findall(r'([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*"', expression)
    grouped = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    return set(chosen) | {name.strip() for group in grouped for name in group.split(",") if name.strip()}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [*dashboard["panels"], *(inner for panel in dashboard["panels"] for inner in panel.get("panels", []))]


def expressions() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                yield f"{path.name}: {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            values = re.match(r"label_values\((.*),\s*\w+\)", variable.get("definition", ""))
            if values:
                yield f"{path.name}: ${variable['name']}", values.group(1)
        for note in dashboard["annotations"]["list"]:
            yield f"{path.name}: {note['name']}", note["expr"]
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=[where for where, _ in expressions()])
def test_every_expression_uses_exported_metrics_and_their_labels(where: str, expression: str) -> None:
    known = exported()
    used = metrics_in(expression)
    assert used, f"{where}: no metric found in {expression}"
    assert used <= known.keys(), where
    labels = set().union(EVERYWHERE, *(known[name] for name in used))
    assert labels_in(expression) <= labels, where


@pytest.mark.parametrize("expression", ["switch_port_upp == 0", "rate(switch_prot_drops_total[5m])"])
def test_a_misspelt_metric_is_found(expression: str) -> None:
    assert not metrics_in(expression) <= exported().keys()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_are_laid_out_soundly(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"]
    every = panels(dashboard)
    identifiers = [panel["id"] for panel in every]
    assert len(set(identifiers)) == len(identifiers)
    taken: dict[tuple[int, int], str] = {}
    for panel in every:
        box = panel["gridPos"]
        assert box["x"] >= 0
        assert box["x"] + box["w"] <= 24, panel["title"]
        for cell in (
            (x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}", "the data source is the user's choice"
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_says_what_to_do_and_has_a_case() -> None:
    cases = (GRAFANA / "prometheus/rules-test.yml").read_text()
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["annotations"]["summary"]
                assert rule["annotations"]["description"]
                assert rule["labels"]["severity"] in {"warning", "critical"}
                assert rule["alert"] in cases


def test_provisioning_agrees_with_itself() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/switch.yaml").read_text())
    assert sources["apiVersion"] == providers["apiVersion"] == 1
    assert providers["providers"][0]["options"]["path"] in (GRAFANA / "README.md").read_text()
