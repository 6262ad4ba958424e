# SPDX-License-Identifier: Apache-2.0
"""What a restart must not forget: round trips, damage, and the file against what was changed beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.datapath import FdbGroup, PortSpec, VlanPolicy
from switch.learning import Flow
from switch.plan import BridgeSpec
from switch.state import (
    SavedState,
    StateFile,
    decode,
    difference,
    encode,
    overlay_bridges,
    overlay_ports,
    port_from_dict,
    spec_to_dict,
)

names = st.text("abcdefgh0123-", min_size=1, max_size=8)
vlans = st.one_of(
    st.builds(VlanPolicy, access=st.integers(1, 4094)),
    st.builds(
        VlanPolicy,
        trunk=st.none() | st.lists(st.integers(1, 4094), max_size=4).map(tuple),
        native=st.integers(0, 4094),
    ),
)
specs = st.builds(
    PortSpec,
    name=names,
    type=st.sampled_from(["vhostuser", "tap"]),
    bridge=names,
    vlan=vlans,
    isolated=st.booleans(),
    mac_limit=st.integers(0, 100),
    rx_affinity=st.dictionaries(st.integers(0, 8), st.integers(0, 64), max_size=3),
    socket=st.text(max_size=20),
    socket_mode=st.none() | st.integers(0, 0o777),
    queues=st.integers(1, 16),
    mac=st.integers(0, (1 << 48) - 1),
    packed=st.booleans(),
)


def a_port(name: str = "vm1", **changes: object) -> PortSpec:
    return PortSpec(name, "vhostuser", "br0", socket=f"/run/{name}.sock", **changes)  # type: ignore[arg-type]


@given(specs)
def test_a_port_survives_its_dictionary(spec: PortSpec) -> None:
    assert port_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


@given(st.dictionaries(names, specs, max_size=5), st.dictionaries(names, specs, max_size=5))
def test_overlays_rebuild_what_ran_on_the_same_file(base: dict[str, PortSpec], now: dict[str, PortSpec]) -> None:
    state = decode(json.loads(b"{" + encode(SavedState(ports=difference(base, now)))))
    rebuilt, _ = overlay_ports(base, state.ports)
    assert rebuilt == now


def test_a_state_file_round_trips(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "control.sock.state.json")
    state = SavedState(
        saved=12.5,
        starts=3,
        ports=difference({"vm1": a_port()}, {"vm1": a_port(mtu=9000), "vm2": a_port("vm2")}),
        bridges=difference({}, {"br1": BridgeSpec("br1", 60, 100)}),
        flows=[Flow("br0", 10, 0x525400000001, "vm1"), Flow("br0", 0, 0x525400000002, "", "static")],
        learned=[FdbGroup("br0", 10, "vm1", 7, bytes.fromhex("525400000003 525400000004"))],
    )
    assert file.save(state)
    assert StateFile(file.path).load() == state
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["control.sock.state.json"]


def test_learned_flows_that_changed_are_a_change(tmp_path: Path) -> None:
    learned = [FdbGroup("br0", vid, "vm1", 7, random.Random(vid).randbytes(6 * vid)) for vid in range(1, 200)]
    file = StateFile(tmp_path / "s.json")
    assert file.save(SavedState(saved=1.0, learned=learned))
    assert file.load().learned == learned
    assert not file.save(SavedState(saved=2.0, learned=learned))
    assert file.save(SavedState(saved=3.0, learned=[*learned, FdbGroup("br0", 1, "vm1", 0, bytes(5) + b"2")]))


def test_the_rows_of_version_1_are_read() -> None:
    learned = [["br0", 10, "52:54:00:00:00:03", "vm1", 7], ["br0", 0, "52:54:00:00:00:04", "vm2", 0]]
    body = {"version": 1, "saved": 1.0, "starts": 1, "ports": {}, "bridges": {}, "flows": [], "learned": learned}
    assert decode(body).learned == [
        FdbGroup("br0", 10, "vm1", 7, bytes.fromhex("525400000003")),
        FdbGroup("br0", 0, "vm2", 0, bytes.fromhex("525400000004")),
    ]


def test_an_unchanged_state_is_not_written_again(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "s.json")
    assert file.save(SavedState(saved=1.0))
    assert not file.save(SavedState(saved=2.0))
    assert file.save(SavedState(saved=3.0), force=True)
    assert file.load().saved == 3.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version": 99}',
        b'{"version": 1, "starts": 1, "ports": {"a": 7}, "bridges": {}, "flows": [], "learned": []}',
        b'{"version": 1, "starts": 1, "ports": {}, "bridges": {}, "flows": [[1]], "learned": []}',
        b'{"version": 1, "starts": 1, "ports": {}, "bridges": {}, "flows": [], "learned": [["b",0,"zz","p",1]]}',
        b'{"version": 2, "starts": 1, "ports": {}, "bridges": {}, "flows": [], "learned": [["b",0,"5254","p",1]]}',
        b'{"version": 2, "starts": 1, "ports": {}, "bridges": {}, "flows": [], "learned": [["b",9999,"","p",1]]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert StateFile(path).load() == SavedState()
    assert not path.exists()
    assert (tmp_path / "s.json.corrupt").read_bytes() == content
    assert "damaged" in caplog.text


json_keys = st.sampled_from(["version", "starts", "ports", "bridges", "flows", "learned", "kind", "base", "now", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(json_keys, inner),
)


@given(json_values)
def test_any_json_decodes_or_is_refused_in_a_known_way(body: object) -> None:
    if isinstance(body, dict):
        body["version"] = 2
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        decode(body)


def test_no_file_is_an_empty_state_and_fresh_forgets(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "s.json")
    assert file.load() == SavedState()
    file.forget()
    file.save(SavedState())
    file.forget()
    assert not file.path.exists()


def test_saving_where_nobody_may_write_leaves_no_trace(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "missing" / "s.json")
    with pytest.raises(FileNotFoundError):
        file.save(SavedState())
    assert list(tmp_path.iterdir()) == []


def test_overlays_are_applied_and_told() -> None:
    base = {"vm1": a_port(), "vm2": a_port("vm2")}
    now = {"vm1": a_port(isolated=True), "vm3": a_port("vm3")}
    ports, notes = overlay_ports(base, difference(base, now))
    assert ports == now
    assert notes == [
        "restored 1 port added at run time: vm3; start with --fresh to forget",
        "restored 1 port changed at run time: vm1; start with --fresh to forget",
        "restored 1 port deleted at run time: vm2; start with --fresh to forget",
    ]


@pytest.mark.parametrize("kind", ["added", "changed", "deleted"])
def test_an_edited_file_wins_over_an_overlay(kind: str) -> None:
    base = {} if kind == "added" else {"vm1": a_port()}
    now = {} if kind == "deleted" else {"vm1": a_port(isolated=True)}
    edited = {"vm1": a_port(mtu=1400)}
    ports, notes = overlay_ports(edited, difference(base, now))
    assert ports == edited
    assert notes == [f"port vm1 was {kind} at run time, but the file has changed since: the file wins"]


def test_a_file_that_caught_up_with_the_overlay_is_silent() -> None:
    base, now = {"vm1": a_port()}, {"vm1": a_port(isolated=True)}
    assert overlay_ports(now, difference(base, now)) == (now, [])


@pytest.mark.parametrize("change", [{"queues": "two"}, {"unknown": 1}, {"vlan": {"access": 1, "colour": 2}}])
def test_an_unusable_record_is_left_out(change: dict[str, object]) -> None:
    record = {**spec_to_dict(a_port()), **change}
    (overlay,) = difference({}, {"vm1": a_port()}).values()
    broken = type(overlay)(overlay.kind, None, record)
    ports, (note,) = overlay_ports({}, {"vm1": broken})
    assert ports == {}
    assert "unusable" in note


def test_bridges_come_back_but_are_never_deleted() -> None:
    base = {"br0": BridgeSpec("br0")}
    assert overlay_bridges(base, difference(base, {"br1": BridgeSpec("br1", 60)}))[0] == {
        "br0": BridgeSpec("br0"),
        "br1": BridgeSpec("br1", 60),
    }
