# SPDX-License-Identifier: Apache-2.0
"""Metrics: names and labels as documented, conservation provable from them, clean for promtool."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from switch.datapath import PortSpec, PortStats, QueueStats
from switch.errors import SwitchError
from switch.metrics import FAMILIES, REFUSALS, ApiFacts, ControlFacts, MetricsServer, make_registry, render
from tests.support.memory_datapath import RX_REASONS, TX_REASONS, MemoryDatapath

ROOT = Path(__file__).resolve().parents[2]
REASONS = RX_REASONS + TX_REASONS


@pytest.fixture
def datapath() -> Iterator[MemoryDatapath]:
    made = MemoryDatapath(workers=(2, 3))
    made.add_bridge("br0", 300, 1024)
    made.add_port(PortSpec("vm1", "vhostuser", "br0", socket="/run/vm1.sock", socket_owner="peer", enabled=False))
    made.add_port(PortSpec("up", "tap", "br0", device="tap0"))
    made.down["up"] = "no carrier"
    yield made
    made.close()


def facts(datapath: MemoryDatapath) -> ControlFacts:
    api = ApiFacts(True, 3, dict.fromkeys(REFUSALS, 0) | {"token": 7}, 1e9)
    return ControlFacts(list(datapath.specs.values()), 100.0, 2, False, 50.0, "abc123", api)


def samples(datapath: MemoryDatapath) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    result: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
    for metric in render(datapath.stats(), datapath.ports(), facts(datapath)):
        for sample in metric.samples:
            result[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return result


def test_values_carry_the_promised_labels(datapath: MemoryDatapath) -> None:
    found = samples(datapath)
    assert found["switch_port_up"] == {(("port", "vm1"),): 1, (("port", "up"),): 0}
    assert found["switch_port_enabled"] == {(("port", "vm1"),): 0, (("port", "up"),): 1}
    info = {dict(labels)["port"]: dict(labels) for labels in found["switch_port_info"]}
    assert info["vm1"] == {"port": "vm1", "type": "vhostuser", "bridge": "br0", "device": "", "socket_owner": "peer"}
    assert info["up"]["device"] == "tap0"
    assert found["switch_config_last_apply_success"] == {(): 0}
    assert found["switch_config_hash_info"] == {(("hash", "abc123"),): 1}
    assert found["switch_restarts_total"] == {(): 2}
    assert found["switch_api_refused_total"][("reason", "token"),] == 7
    assert found["switch_port_lines_far"] == {
        (("direction", direction), ("port", port), ("queue", "0")): far
        for port in ("vm1", "up")
        for direction, far in (("rx", 1), ("tx", 0))
    }
    assert found["switch_worker_busy_seconds_total"][("worker", "1"),] == 1.5


def test_every_family_is_emitted_with_exactly_its_labels(datapath: MemoryDatapath) -> None:
    for metric in render(datapath.stats(), datapath.ports(), facts(datapath)):
        (name,) = {metric.name, f"{metric.name}_total", f"{metric.name}_info"} & FAMILIES.keys()
        assert metric.samples, f"{name} has no sample"
        assert metric.documentation == FAMILIES[name].help
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(FAMILIES[name].labels), name


def test_no_label_could_hold_an_address() -> None:
    labels = {label for family in FAMILIES.values() for label in family.labels}
    assert not labels & {"mac", "ip", "address", "vlan", "detail"}


def test_reasons_are_present_before_they_happen_and_only_where_they_can(datapath: MemoryDatapath) -> None:
    drops = {tuple(dict(labels)[key] for key in ("port", "direction", "reason"))
             for labels in samples(datapath)["switch_port_drops_total"]}  # fmt: skip
    for port in ("vm1", "up"):
        assert {reason for name, direction, reason in drops if (name, direction) == (port, "rx")} == set(RX_REASONS)
        assert {reason for name, direction, reason in drops if (name, direction) == (port, "tx")} == set(TX_REASONS)


def test_the_batch_histogram_is_cumulative(datapath: MemoryDatapath) -> None:
    found = samples(datapath)
    buckets = {dict(labels)["le"]: value for labels, value in found["switch_worker_batch_frames_bucket"].items()
               if ("worker", "0") in labels}  # fmt: skip
    assert buckets == {"1": 1, "3": 2, "7": 2, "15": 2, "31": 2, "63": 2, "+Inf": 3}
    assert found["switch_worker_batch_frames_sum"][("worker", "0"),] == 70
    assert found["switch_worker_batch_frames_count"][("worker", "0"),] == 3


counts = st.integers(0, 10**12)


@st.composite
def port_stats(draw: st.DrawFn) -> PortStats:
    """A port whose counters conserve frames, as the core promises."""
    rx = [QueueStats(queue, 0, draw(counts), draw(counts), 0) for queue in range(draw(st.integers(1, 4)))]
    tx_drops = dict.fromkeys(REASONS, 0) | draw(st.dictionaries(st.sampled_from(REASONS), counts, max_size=3))
    rx_drops = dict.fromkeys(REASONS, 0)
    replicated, segmented, offered = draw(counts), draw(counts), draw(counts) + sum(tx_drops.values())
    rest = sum(queue.frames for queue in rx) + replicated
    for reason in draw(st.lists(st.sampled_from(REASONS), max_size=3, unique=True)):
        rx_drops[reason] = draw(st.integers(0, rest))
        rest -= rx_drops[reason]
    sent = offered + segmented - sum(tx_drops.values())
    tx = [QueueStats(0, -1, sent, 0, 0)]
    return PortStats("vm1", rx, tx, rx_drops, tx_drops, replicated, rest, offered, segmented)


@given(port_stats())
def test_conservation_can_be_proved_from_the_metrics(stats: PortStats) -> None:
    datapath = MemoryDatapath()
    try:
        datapath.add_bridge("br0", 300, 1024)
        datapath.add_port(PortSpec("vm1", "vhostuser", "br0", socket="/run/vm1.sock"))
        datapath.counters["vm1"] = stats
        found = samples(datapath)
    finally:
        datapath.close()

    def total(name: str, *having: tuple[str, str]) -> float:
        return sum(value for labels, value in found[name].items() if set(having) <= set(labels))

    assert total("switch_port_receive_frames_total") + total("switch_port_replicated_frames_total") == total(
        "switch_port_forwarded_frames_total"
    ) + total("switch_port_drops_total", ("direction", "rx"))
    assert total("switch_port_offered_frames_total") + total("switch_port_segmented_frames_total") == total(
        "switch_port_transmit_frames_total"
    ) + total("switch_port_drops_total", ("direction", "tx"))


def test_both_formats_parse(datapath: MemoryDatapath) -> None:
    registry = make_registry(datapath, lambda: facts(datapath))
    text = generate_latest(registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert "switch_port_receive_frames" in names or "switch_port_receive_frames_total" in names
    openmetrics = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    assert openmetrics.endswith("# EOF\n")
    assert list(parse_openmetrics(openmetrics))  # type: ignore[no-untyped-call]


def test_promtool_finds_nothing_to_complain_about(datapath: MemoryDatapath) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install the package prometheus")
    exposition = generate_latest(make_registry(datapath, lambda: facts(datapath)))
    ours = b"".join(line + b"\n" for line in exposition.splitlines() if b"process_" not in line)
    done = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_metric_is_documented_and_no_other(datapath: MemoryDatapath) -> None:
    rows = re.findall(
        r"^\| `(switch_[a-z_]+)` \| (\w+) \| ([^|]*) \| (.*) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    assert documented == {
        family.name: (family.kind, family.labels, family.help.replace("|", r"\|")) for family in FAMILIES.values()
    }


def test_the_listener_serves_a_scrape(datapath: MemoryDatapath) -> None:
    server = MetricsServer("127.0.0.1", 0, make_registry(datapath, lambda: facts(datapath)))
    try:
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            assert b"switch_build_info" in answer.read()
    finally:
        server.close()


def test_a_busy_port_is_said_to_be_busy(datapath: MemoryDatapath) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SwitchError, match=rf"127.0.0.1:{port}.*another process listens there"):
            MetricsServer("127.0.0.1", port, make_registry(datapath, lambda: facts(datapath)))
