# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (a row of a table is one line)
"""Requests, dumps and fingerprints: what goes out as YAML or JSON comes back equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from switch.config import (
    ANY_MACHINE,
    config_hash,
    dump_config,
    parse_config,
    port_from_request,
    port_from_spec,
    values,
)
from switch.config.dump import to_yaml
from switch.config.loader import read_yaml
from switch.config.models import PORT_KINDS, port_spec
from switch.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def refused(request: dict[str, Any], base: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        port_from_request(request, base, ANY_MACHINE)
    return [str(fault) for fault in caught.value.faults]


# ---- requests ----


def test_a_request_names_the_keys_of_the_file() -> None:
    port = port_from_request(
        {"name": "vm1", "type": "vhostuser", "socket": "/run/a", "vlan": {"access": 10}, "rx_affinity": {"0": 3}},
        machine=ANY_MACHINE,
    )
    spec = port_spec(port, "br0", ANY_MACHINE)
    assert (spec.name, spec.socket, spec.vlan.access, dict(spec.rx_affinity)) == ("vm1", "/run/a", 10, {0: 3})


@pytest.mark.parametrize(
    ("request_", "faults"),
    [
        ({}, ["type: required key 'type' is missing: one of vhostuser, virtiouser, tap, afpacket, verbs, vdpa, vduse, afxdp", "name: this required key is missing"]),
        ({"name": "x", "type": "bond"}, ["type: there is no type 'bond': this build has vhostuser, virtiouser, tap, afpacket, verbs, vdpa, vduse, afxdp"]),
        ({"name": "x", "type": "tap", "queue": 2}, ["queue: unknown key 'queue': did you mean 'queues'?"]),
        ({"name": "x", "type": "vhostuser", "socket": "a"}, ["socket: 'a' is a relative path: write an absolute one, starting with /"]),
        ({"name": "x", "type": "tap", "vlan": {"access": 5000}}, ["vlan.access: 5000 is not a VLAN: a number from 1 to 4094"]),
        ({"name": "x", "type": "tap", "vlan": {"trunk": [1, "x"]}}, ["vlan.trunk[1]: 'x' is not a VLAN or a range of them: write 10 or \"10-20\""]),
        ({"name": "x", "type": "tap", "mtu": "9000", "learning": 1}, ["mtu: must be a whole number, not '9000': remove the quotes", "learning: must be true or false, not 1"]),
    ],
)  # fmt: skip
def test_a_request_is_refused_with_the_key(request_: dict[str, Any], faults: list[str]) -> None:
    assert sorted(refused(request_)) == sorted(faults)


def test_a_change_keeps_what_it_does_not_name() -> None:
    base = port_from_request({"name": "t", "type": "tap", "mtu": 9000, "vlan": {"access": 10}, "queues": 2})
    changed = port_from_request({"vlan": {"trunk": [20]}, "isolated": True}, base)
    assert changed == port_from_request(
        {"name": "t", "type": "tap", "mtu": 9000, "vlan": {"trunk": [20]}, "queues": 2, "isolated": True}
    )


def test_null_puts_a_key_back_to_its_default() -> None:
    base = port_from_request({"name": "t", "type": "tap", "mtu": 9000, "vlan": {"access": 10}})
    assert port_from_request({"mtu": None, "vlan": None}, base) == port_from_request({"name": "t", "type": "tap"})


def test_a_change_is_checked_like_a_new_port() -> None:
    base = port_from_request({"name": "vm", "type": "vhostuser", "socket": "/a", "socket_mode": "0660"})
    assert refused({"socket_owner": "peer"}, base) == [
        "socket_mode: has no effect with socket_owner: peer: the peer creates the socket; remove it"
    ]


# ---- round trips ----

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
macs = st.integers(1, 2**40 - 1).map(values.format_mac)  # the first byte is 0, so none is a group address
vlans = st.integers(1, 4094)
vlan_sections: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"access": vlans}),
    st.fixed_dictionaries(
        {"trunk": st.one_of(st.just("all"), st.lists(vlans, min_size=1, max_size=9))}, optional={"native": vlans}
    ),
    st.just({}),
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    bridges = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ports = []
    pinned = draw(st.lists(macs, max_size=4, unique=True))
    for index, name in enumerate(draw(st.lists(names, max_size=4, unique=True))):
        kind = draw(st.sampled_from(sorted(PORT_KINDS)))
        port: dict[str, Any] = {"name": name, "type": kind, "bridge": draw(st.sampled_from(bridges))}
        optional: dict[str, st.SearchStrategy[Any]] = {
            "vlan": vlan_sections,
            "enabled": st.booleans(),
            "isolated": st.booleans(),
            "mac_limit": st.integers(0, 100),
            "mtu": st.sampled_from([0, 68, 1500, 9000]),
            "queues": st.integers(2, 64),
            "rx_affinity": st.dictionaries(st.integers(0, 0), st.just(0)),
        }
        if kind in ("vhostuser", "virtiouser"):
            port["socket"] = f"/run/dir with space/{index}: x#{draw(names)}.sock"
        if kind == "vhostuser":
            optional |= {"socket_mode": st.sampled_from(["0600", "0007"]), "socket_group": st.sampled_from(["on", 5])}
        if kind == "afxdp":
            optional["checksum"] = st.sampled_from(["auto", "fix", "trust"])
        else:
            optional["offloads"] = st.booleans()
        if kind == "tap":
            optional["mac"] = macs
        if kind in ("afpacket", "afxdp"):
            port["device"] = f"e{index}.{draw(st.integers(1, 99))}"
        if kind == "vdpa":
            port["device"] = f"/dev/vhost-vdpa-{index}"
        if kind == "vduse":
            port["device"] = f"d{index}.{draw(st.integers(1, 99))}"
            del optional["queues"]
        if kind == "verbs":
            port["device"] = f"mlx5_{index}-{draw(st.integers(1, 99))}"
            optional["steering"] = st.sampled_from(["leftovers", ["52:54:00:00:00:01", "52-54-00-00-00-02"]])
        if pinned:
            port["macs"] = [pinned.pop()]
        ports.append(port | draw(st.fixed_dictionaries({}, optional=optional)))
    return {
        "version": 1,
        "switch": {
            "name": draw(names),
            "workers": [{"cpu": 0}],
            "polling": draw(st.sampled_from(["busy", "adaptive"])),
            "memory": {"size": draw(st.sampled_from([1 << 20, (1 << 20) + 1, "256M"])), "hugepages": "off"},
        },
        "control": {"mode": "0000"},
        "metrics": {"listen": draw(st.sampled_from(["off", "[::1]:1", ":0", "h.example:65535"]))},
        "bridges": [
            {"name": name, "ageing": draw(st.sampled_from([0, 60, "5m"])), "mac_limit": draw(st.integers(1, 99))}
            for name in bridges
        ],
        "ports": ports,
    }


@given(configs())
def test_a_dump_reads_back_equal(data: dict[str, Any]) -> None:
    config = parse_config(json.dumps(data), machine=ANY_MACHINE)
    text = dump_config(config)
    document = read_yaml(text, "dump")
    assert document.faults == []
    again = parse_config(text, machine=ANY_MACHINE)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert dump_config(again) == text


@given(configs())
def test_a_dump_means_the_same_to_an_ordinary_yaml_reader(data: dict[str, Any]) -> None:
    text = dump_config(parse_config(json.dumps(data), machine=ANY_MACHINE))
    assert yaml.safe_load(text) == read_yaml(text, "dump").data


@given(configs())
def test_a_running_port_can_be_written_into_a_file(data: dict[str, Any]) -> None:
    config = parse_config(json.dumps(data), machine=ANY_MACHINE)
    for spec in config.port_specs(ANY_MACHINE):
        port = port_from_spec(spec)
        assert port_spec(port, port.bridge or "", ANY_MACHINE) == spec


def test_a_dump_leaves_defaults_out() -> None:
    assert dump_config(parse_config("version: 1\nswitch: {polling: adaptive}\nports: []")) == "version: 1\n"


def test_a_dump_is_pleasant() -> None:
    text = """\
version: 1
metrics:
  listen: "off"
ports:
- name: vm1
  type: vhostuser
  vlan:
    trunk:
    - 10
    - "20-29"
  rx_affinity:
    0: 0
  socket: /run/vm1.sock
  socket_mode: "0660"
"""
    config = parse_config(text, machine=ANY_MACHINE)
    assert dump_config(config) == text


def test_the_hash_sees_meaning_not_spelling() -> None:
    one = "version: 1\nports:\n  - {name: t, type: tap, vlan: {trunk: [10, 11, 12]}}  # lab\n"
    same = 'ports: [{type: tap, vlan: {trunk: ["10-12"]}, name: "t", enabled: true}]\nversion: 1\n'
    other = one.replace("12", "13")
    first, second, third = (config_hash(parse_config(text)) for text in (one, same, other))
    assert first == second != third


def test_a_config_cannot_be_changed() -> None:
    config = parse_config("version: 1\n")
    with pytest.raises(ValueError, match="frozen"):
        config.switch.name = "x"  # type: ignore[misc]


# ---- weight ----


def test_importing_the_package_loads_neither_pydantic_nor_yaml() -> None:
    probe = (
        "import sys; import switch.config, switch.plan; from switch.config import values, machine;"
        "print(sorted({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_of_the_package() -> None:
    import switch.config

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = switch.config.nonsense
    assert "load_config" in dir(switch.config)


@pytest.mark.parametrize(
    "text", ["02:00:00:00:00:01,02:00:00:00:00:02", "yes", "0660", "12:34:56", "1e3", "~", "", "a: b", "- x", "é"]
)
def test_a_text_stays_a_text_for_every_reader(text: str) -> None:
    data = {"steering": [text, {"key": text}], text or "key": 1}
    assert yaml.safe_load(to_yaml(data)) == data
    assert read_yaml(to_yaml(data), "dump").data == data
