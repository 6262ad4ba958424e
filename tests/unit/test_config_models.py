# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (a row of a table is one line)
"""What a configuration may say: every rule as a row of text, the path of the fault, and a part of its sentence."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.config.dump import dump_config
from switch.config.machine import Machine
from switch.config.models import Config
from switch.config.parse import parse_config
from switch.errors import ConfigError, Fault

MACHINE = Machine(frozenset({0, 1, 2, 6}), {"kvm": 36, "0": 0}.get)


def parse(text: str, **more: Any) -> Config:
    return parse_config(text, "f", machine=more.pop("machine", MACHINE), **more)


def faults_of(text: str, **more: Any) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **more)
    return caught.value.faults


def port(body: str, more: str = "") -> str:
    return f"version: 1\n{more}\nports:\n  - {{{body}}}\n"


VM = "name: vm1, type: vhostuser, socket: /run/vm1.sock"
VU = "name: vu, type: virtiouser, socket: /run/vu.sock"

T = "tokens: [{name: a, file: /t}]"


def tcp(
    more: str = "", listen: str = 'listen: ":9481"', certificate: str = "certificate: /c", key: str = "key: /k"
) -> str:
    return f"version: 1\ncontrol: {{tcp: {{{', '.join(filter(None, (listen, certificate, key, more)))}}}}}"


ROWS = [
    # top
    ("ports: []", "version", "required key is missing"),
    ("version: 2", "version", "must be 1, not 2"),
    ('version: "1"', "version", "must be 1, not '1'"),
    ("version: 1\nprots: []", "prots", "did you mean 'ports'?"),
    ("version: 1\nworkers: [{cpu: 0}]", "workers", "write switch: {workers: ...}"),
    ("version: 1\nxyz: 1", "xyz", "the keys here are version, switch, control, metrics, bridges, ports"),
    ("version: 1\nports: {}", "ports", "must be a list"),
    ("version: 1\nports: [vm1]", "ports[0]", "must be a mapping (key: value), not 'vm1'"),
    ("version: 1\nbridges: [br0]", "bridges[0]", "write {name: br0}"),
    # switch
    ("version: 1\nswitch:", "switch", "must be a mapping (key: value), not nothing"),
    ("version: 1\nswitch: {name: a b}", "switch.name", "'a b' is not a name"),
    ("version: 1\nswitch: {name: 5}", "switch.name", "a name is text, not 5: put it in quotes"),
    (f"version: 1\nswitch: {{name: {'x' * 64}}}", "switch.name", "is longer than 63 characters"),
    ("version: 1\nswitch: {name: -x}", "switch.name", "is not a name"),
    ("version: 1\nswitch: {polling: bussy}", "switch.polling", "must be adaptive or busy, not 'bussy': did you mean"),
    ("version: 1\nswitch: {polling: null}", "switch.polling", "has no value"),
    ("version: 1\nswitch: {workers: []}", "switch.workers", "is empty: give at least one worker, or remove the key"),
    ("version: 1\nswitch: {workers: [0]}", "switch.workers[0]", "write {cpu: 0}"),
    ("version: 1\nswitch: {workers: [{cpu: 5}]}", "switch.workers[0].cpu", "there is no CPU 5 for this process: it may use 0-2, 6"),
    ("version: 1\nswitch: {workers: [{cpu: 1}, {cpu: 1}]}", "switch.workers[1].cpu", "CPU 1 has a worker already (workers[0])"),
    ("version: 1\nswitch: {workers: [{cpu: -1}]}", "switch.workers[0].cpu", "must be from 0 to 8191, not -1"),
    ("version: 1\nswitch: {workers: [{cpu: true}]}", "switch.workers[0].cpu", "must be a whole number, not true"),
    ('version: 1\nswitch: {workers: [{cpu: "1"}]}', "switch.workers[0].cpu", "not '1': remove the quotes"),
    ("version: 1\nswitch: {cores: [1]}", "switch.cores", "write workers: [{cpu: N}, ...]"),
    ("version: 1\nswitch: {memory: {hugepages: on}}", "switch.memory.hugepages", "must be auto, required or off, not 'on'"),
    ("version: 1\nswitch: {memory: {size: 256MX}}", "switch.memory.size", "'256MX' is not a size"),
    ("version: 1\nswitch: {memory: {size: 1K}}", "switch.memory.size", "must be from 1M to 1T, not '1K'"),
    ("version: 1\nswitch: {memory: {size: 1.5}}", "switch.memory.size", "1.5 is not a size"),
    ("version: 1\nswitch: {state_dir: state}", "switch.state_dir", "relative path"),
    # control, metrics
    ("version: 1\ncontrol: {socket: x.sock}", "control.socket", "'x.sock' is a relative path"),
    (f"version: 1\ncontrol: {{socket: /{'x' * 107}}}", "control.socket", "has 108 bytes: the system takes 107 at most"),
    (f"version: 1\ncontrol: {{socket: /{'é' * 60}}}", "control.socket", "has 121 bytes"),
    ("version: 1\ncontrol: {mode: 432}", "control.mode", "432 is not a file mode: write octal digits in quotes"),
    ('version: 1\ncontrol: {mode: "0999"}', "control.mode", "'0999' is not a file mode"),
    ('version: 1\ncontrol: {mode: "04755"}', "control.mode", "is not a file mode"),
    ("version: 1\ncontrol: {group: nosuch}", "control.group", "there is no group 'nosuch' on this machine: create it"),
    ("version: 1\ncontrol: {group: true}", "control.group", "a group is text, not true"),
    ("version: 1\nmetrics: {listen: 9480}", "metrics.listen", "9480 is not an address to listen on"),
    ('version: 1\nmetrics: {listen: "::1:9480"}', "metrics.listen", 'write "127.0.0.1:9480", "[::1]:9480"'),
    ('version: 1\nmetrics: {listen: "127.0.0.1:70000"}', "metrics.listen", "is not an address to listen on"),
    # control.tcp
    ("version: 1\ncontrol: {tcp: on}", "control.tcp", 'must be a mapping (key: value), not \'on\': write {listen: "on", certificate: FILE, key: FILE, tokens: [...]}'),
    ("version: 1\ncontrol: {listen: 0.0.0.0}", "control.listen", 'write tcp: {listen: "ADDRESS:PORT", certificate: FILE, key: FILE, tokens: [...]}'),
    (tcp(), "control.tcp.tokens", "the API over TCP needs a token: write tokens: [{name: NAME, file: FILE, access: read}]"),
    (tcp("tokens: []"), "control.tcp.tokens", "the API over TCP needs a token"),
    (tcp("tokens: /t"), "control.tcp.tokens", "must be a list"),
    (tcp("tokens: [/t]"), "control.tcp.tokens[0]", "write {name: NAME, file: /t}"),
    (tcp("tokens: [{name: a}]"), "control.tcp.tokens[0].file", "required key is missing"),
    (tcp("tokens: [{file: /t}]"), "control.tcp.tokens[0].name", "required key is missing"),
    (tcp("tokens: [{name: a, file: t}]"), "control.tcp.tokens[0].file", "'t' is a relative path"),
    (tcp("tokens: [{name: a, file: /t, access: admin}]"), "control.tcp.tokens[0].access", "must be read or write, not 'admin'"),
    (tcp("tokens: [{name: a, file: /t}, {name: a, file: /u}]"), "control.tcp.tokens[1].name", "the name 'a' is taken by tokens[0]"),
    (tcp("tokens: [{name: a, file: /t}, {name: b, file: /t}]"), "control.tcp.tokens[1].file", "the file '/t' is taken by tokens[0]"),
    (tcp(T, certificate=""), "control.tcp.certificate", "required key is missing"),
    (tcp(T, key=""), "control.tcp.key", "required key is missing"),
    (tcp(T, listen=""), "control.tcp.listen", "required key is missing"),
    (tcp(T, listen="listen: 9481"), "control.tcp.listen", "9481 is not an address to listen on"),
    (tcp(T, listen='listen: "off"'), "control.tcp.listen", "'off' is not an address to listen on"),
    (tcp(T, listen='listen: ":9480"'), "control.tcp.listen", "port 9480 is that of metrics.listen: choose another"),
    (tcp(T, listen='listen: "127.0.0.1:9480"'), "control.tcp.listen", "port 9480 is that of metrics.listen"),
    (tcp(f"{T}, tls: false"), "control.tcp.tls", "there is no TCP without TLS"),
    (tcp(f"{T}, token_file: /t"), "control.tcp.token_file", "write tokens: [{name: NAME, file: FILE, access: read}]"),
    (tcp(f"{T}, cert_file: /t"), "control.tcp.cert_file", "write certificate: FILE"),
    # bridges
    ("version: 1\nbridges: [{}]", "bridges[0].name", "required key is missing"),
    ("version: 1\nbridges: [{name: a}, {name: a}]", "bridges[1].name", "the name 'a' is taken by bridges[0]"),
    ("version: 1\nbridges: [{name: a, aging: 5}]", "bridges[0].aging", "unknown key 'aging': write ageing"),
    ("version: 1\nbridges: [{name: a, ageing: 5 minutes}]", "bridges[0].ageing", "'5 minutes' is not a duration"),
    ("version: 1\nbridges: [{name: a, ageing: 20d}]", "bridges[0].ageing", "must be from 1s to 1000000s or 0 (never)"),
    ("version: 1\nbridges: [{name: a, ageing: -3}]", "bridges[0].ageing", "it cannot be negative"),
    ("version: 1\nbridges: [{name: a, mac_limit: 0}]", "bridges[0].mac_limit", "must be from 1 to 1048576"),
    ("version: 1\nbridges: [{name: a, move_damping: {window: 0}}]", "bridges[0].move_damping.window", "must be from 1s to 3600s"),
    ("version: 1\nbridges: [{name: a, static: [{mac: x, blackhole: true}]}]", "bridges[0].static[0].mac", "is not a MAC"),
    ('version: 1\nbridges: [{name: a, static: [{mac: "02:00:00:00:00:01"}]}]', "bridges[0].static[0].port", "required key 'port'"),
    ('version: 1\nbridges: [{name: a, static: [{mac: "02:00:00:00:00:01", port: x}]}]', "bridges[0].static[0].port", "there is no port 'x'"),
    ('version: 1\nbridges: [{name: a, static: [{mac: "02:00:00:00:00:01", port: t, blackhole: true}]}]\nports: [{name: t, type: tap}]', "bridges[0].static[0].port", "a blackhole has no port"),
    ('version: 1\nbridges: [{name: a, mac_limit: 1, static: [{mac: "02:00:00:00:00:01", blackhole: true}, {mac: "02:00:00:00:00:02", blackhole: true}]}]', "bridges[0].mac_limit", "is 1, less than the 2 addresses"),
    # ports: what all have
    (port("type: tap"), "ports[0].name", "required key is missing"),
    (port("name: t"), "ports[0].type", "required key 'type' is missing: one of vhostuser, virtiouser, tap, afpacket, verbs, vdpa, vduse, afxdp"),
    (port("name: t, type: vdpa"), "ports[0].device", "required key"),
    (port("name: t, type: vdpa, device: eth0"), "ports[0].device", "is no device file: write its path, such as /dev/vhost-vdpa-0"),
    (port("name: t, type: vdpa, device: /dev/vhost-vdpa-0, ring_size: 100"), "ports[0].ring_size", "must be a power of two, not 100: try 64"),
    (port("name: t, type: vduse, device: /dev/x"), "ports[0].device", "cannot name a device"),
    (port("name: t, type: vduse, device: control"), "ports[0].device", "not 'control'"),
    (port("name: t, type: vduse, device: d, queues: 2"), "ports[0].queues", "not a key of type 'vduse'"),
    (port("name: t, type: af_xdp"), "ports[0].type", "write type: afxdp"),
    (port("name: t, type: vhost-user"), "ports[0].type", "did you mean 'vhostuser'?"),
    (port("name: t, type: dpdkvhostuserclient"), "ports[0].type", "write type: vhostuser with socket_owner: peer"),
    (port("name: t, type: 5"), "ports[0].type", "there is no type 5"),
    (port("name: t, type: [tap]"), "ports[0].type", "there is no type a list"),
    (port("name: t, type: tap, bridge: br1"), "ports[0].bridge", "there is no bridge 'br1': did you mean 'br0'?"),
    (port("name: t, type: tap", "bridges: [{name: a}, {name: b}]"), "ports[0].bridge", "'bridge' is missing: there are a, b"),
    (port("name: t, type: tap, enabled: yes"), "ports[0].enabled", "write true or false, without quotes"),
    (port('name: t, type: tap, flood: "true"'), "ports[0].flood", "write true or false, without quotes"),
    (port("name: t, type: tap, isolated: 1"), "ports[0].isolated", "must be true or false, not 1"),
    (port("name: t, type: tap, learning: null"), "ports[0].learning", "has no value"),
    (port("name: t, type: tap, mtu: 67"), "ports[0].mtu", "must be 0 (no limit) or at least 68, not 67"),
    (port("name: t, type: tap, mtu: 65536"), "ports[0].mtu", "must be from 0 to 65535 bytes"),
    (port("name: t, type: tap, mac_limit: -1"), "ports[0].mac_limit", "must be from 0 to 1048576"),
    (port("name: t, type: tap, rx_affinity: [0]"), "ports[0].rx_affinity", "must be a mapping of queue to CPU"),
    (port("name: t, type: tap, rx_affinity: {a: 6}"), "ports[0].rx_affinity.a", "'a' is not a queue"),
    (port("name: t, type: tap, rx_affinity: {0: x}"), "ports[0].rx_affinity[0]", "'x' is not a CPU"),
    (port("name: t, type: tap, queues: 2, rx_affinity: {2: 6}"), "ports[0].rx_affinity[2]", "there is no queue 2: queues is 2"),
    (port("name: t, type: tap, rx_affinity: {0: 1}"), "ports[0].rx_affinity[0]", "they run on 6 (name the workers"),
    (port("name: t, type: tap, rx_affinity: {0: 1}", "switch: {workers: [{cpu: 0}, {cpu: 2}]}"), "ports[0].rx_affinity[0]", "no worker runs on CPU 1: they run on 0, 2"),
    (port("name: t, type: tap, macs: [x]"), "ports[0].macs[0]", "'x' is not a MAC address"),
    (port('name: t, type: tap, macs: ["00:00:00:00:00:00"]'), "ports[0].macs[0]", "all zeros"),
    (port('name: t, type: tap, macs: ["01:00:5e:00:00:01"]'), "ports[0].macs[0]", "is a multicast address"),
    (port('name: t, type: tap, macs: "02:00:00:00:00:01"'), "ports[0].macs", "must be a list"),
    (port('name: t, type: tap, macs: ["02:00:00:00:00:01", "02-00-00-00-00-01"]'), "ports[0].macs[1]", "is pinned already by ports[0].macs[0]"),
    (port('name: t, type: tap, macs: ["02:00:00:00:00:01"]', 'bridges: [{name: a, static: [{mac: "02:00:00:00:00:01", port: t}]}]'), "ports[0].macs[0]", "is pinned already by bridges[0].static[0]"),
    (port("name: t, type: tap, socket: /x"), "ports[0].socket", "not a key of type 'tap': only vhostuser and virtiouser ports"),
    (port("name: t, type: tap, tag: 5"), "ports[0].tag", "write vlan: {access: N}"),
    (port("name: t, type: tap, n-rxq: 5"), "ports[0].n-rxq", "write queues: N"),
    (port("name: t, type: tap, isolatd: true"), "ports[0].isolatd", "did you mean 'isolated'?"),
    # VLAN
    (port("name: t, type: tap, vlan: 10"), "ports[0].vlan", "write {access: 10} or {trunk: [10, ...]}"),
    (port("name: t, type: tap, vlan: {access: 0}"), "ports[0].vlan.access", "0 is not a VLAN: a number from 1 to 4094"),
    (port("name: t, type: tap, vlan: {access: 4095}"), "ports[0].vlan.access", "4095 is not a VLAN"),
    (port('name: t, type: tap, vlan: {access: "10"}'), "ports[0].vlan.access", "'10' is not a VLAN"),
    (port("name: t, type: tap, vlan: {access: true}"), "ports[0].vlan.access", "true is not a VLAN"),
    (port("name: t, type: tap, vlan: {access: 10, trunk: [20]}"), "ports[0].vlan.trunk", "access and trunk exclude each other"),
    (port("name: t, type: tap, vlan: {access: 10, native: 10}"), "ports[0].vlan.native", "native belongs to a trunk"),
    (port("name: t, type: tap, vlan: {trunk: []}"), "ports[0].vlan.trunk", 'write "all" to carry every VLAN'),
    (port("name: t, type: tap, vlan: {trunk: 10}"), "ports[0].vlan.trunk", 'must be "all" or a list'),
    (port("name: t, type: tap, vlan: {trunk: [10, 20-10]}"), "ports[0].vlan.trunk[1]", "runs backwards"),
    (port("name: t, type: tap, vlan: {trunk: [1-4095]}"), "ports[0].vlan.trunk[0]", "4095 is not a VLAN"),
    (port("name: t, type: tap, vlan: {trunk: null}"), "ports[0].vlan.trunk", "has no value"),
    (port("name: t, type: tap, vlan: {tag: 10}"), "ports[0].vlan.tag", "write access: N"),
    (port("name: t, type: tap, vlan: {native: 0}"), "ports[0].vlan.native", "0 is not a VLAN"),
    # kinds
    (port("name: vm1, type: vhostuser"), "ports[0].socket", "required key is missing"),
    (port("name: vm1, type: vhostuser, socket: vm1.sock"), "ports[0].socket", "relative path"),
    (port("name: vm1, type: vhostuser, socket: ''"), "ports[0].socket", "cannot be empty"),
    (port(f"{VM}, socket_owner: qemu"), "ports[0].socket_owner", "must be switch or peer, not 'qemu'"),
    (port(f"{VM}, queues: 0"), "ports[0].queues", "must be from 1 to 128, not 0"),
    (port(f"{VM}, queues: 129"), "ports[0].queues", "must be from 1 to 128, not 129"),
    (port(f"{VM}, queues: 1.5"), "ports[0].queues", "must be a whole number, not 1.5"),
    (port(f"{VM}, device: eth0"), "ports[0].device", "only tap, afpacket, verbs, vdpa, vduse and afxdp ports have it"),
    (port(f"{VM}, ring_size: 256"), "ports[0].ring_size", "only virtiouser, vdpa and vduse ports have it"),
    (port(f"{VM}, socket_group: nosuch"), "ports[0].socket_group", "there is no group 'nosuch'"),
    (port(f'{VM}, socket_owner: peer, socket_mode: "0660"'), "ports[0].socket_mode", "has no effect with socket_owner: peer"),
    (port(f"{VM}, socket_owner: peer, socket_group: kvm"), "ports[0].socket_group", "has no effect with socket_owner: peer"),
    (port(f"{VM}, server: true"), "ports[0].server", "write socket_owner: switch"),
    (port(f"{VM}, vhost: true"), "ports[0].vhost", "only tap ports have it"),
    (port(f"{VU}, ring_size: 300"), "ports[0].ring_size", "must be a power of two, not 300: try 256"),
    (port(f"{VU}, ring_size: 65536"), "ports[0].ring_size", "must be from 16 to 32768"),
    (port(f'{VU}, socket_mode: "0660"'), "ports[0].socket_mode", "has no effect with socket_owner: peer"),
    (port(f'{VU}, mac: "02:00:00:00:00:01"'), "ports[0].mac", "only tap and vduse ports have it"),
    (port('name: t, type: tap, mac: "ff:ff:ff:ff:ff:ff"'), "ports[0].mac", "is a multicast address"),
    (port("name: t, type: tap, queues: 257"), "ports[0].queues", "must be from 1 to 256, not 257"),
    (port("name: u, type: afpacket"), "ports[0].device", "required key is missing"),
    (port("name: u, type: afpacket, device: averylongdevicename"), "ports[0].device", "cannot be a network device"),
    (port("name: u, type: afpacket, device: a/b"), "ports[0].device", "cannot be a network device"),
    (port("name: u, type: afpacket, device: .."), "ports[0].device", "cannot be a network device"),
    (port("name: u, type: afpacket, device: eth0, queues: 257"), "ports[0].queues", "must be from 1 to 256"),
    (port("name: u, type: verbs"), "ports[0].device", "required key is missing"),
    (port("name: u, type: verbs, device: a/b"), "ports[0].device", "cannot be an RDMA device"),
    (port("name: u, type: verbs, device: mlx5_0, queues: 129"), "ports[0].queues", "must be from 1 to 128"),
    (port("name: u, type: verbs, device: mlx5_0, steering: some"), "ports[0].steering", "must be all, leftovers, or a list"),
    (port('name: u, type: verbs, device: mlx5_0, steering: ["01:00:5e:00:00:01"]'), "ports[0].steering[0]", "is a multicast address"),
    (port("name: u, type: afxdp"), "ports[0].device", "required key is missing"),
    (port("name: u, type: afxdp, device: eth0, queues: 0"), "ports[0].queues", "must be from 1 to 256"),
    (port("name: u, type: afxdp, device: eth0, checksum: off"), "ports[0].checksum", "must be auto, fix or trust"),
    (port("name: u, type: afxdp, device: eth0, offloads: true"), "ports[0].offloads", "'offloads' is not a key of type 'afxdp'"),
    (port(f"{VM}, checksum: fix"), "ports[0].checksum", "only afxdp ports have it"),
]  # fmt: skip

TWO = "version: 1\nports:\n  - {{{}}}\n  - {{{}}}\n"
PAIRS = [
    ("name: a, type: tap", "name: a, type: tap", "ports[1].name", "the name 'a' is taken by ports[0]"),
    (VM, "name: b, type: virtiouser, socket: /run//./vm1.sock", "ports[1].socket", "the socket '/run/vm1.sock' is taken by ports[0]"),
    ("name: a, type: tap, device: x", "name: b, type: afpacket, device: x", "ports[1].device", "the device 'x' is taken by ports[0]"),
    ("name: a, type: tap", "name: b, type: vhostuser, socket: /run/switch/control.sock", "ports[1].socket", "is the control socket"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "reason"), ROWS)
def test_one_fault(text: str, path: str, reason: str) -> None:
    (fault,) = faults_of(text)
    assert fault.path == path
    assert reason in fault.reason
    assert fault.line > 0
    assert fault.column > 0


@pytest.mark.parametrize(("first", "second", "path", "reason"), PAIRS)
def test_things_used_twice(first: str, second: str, path: str, reason: str) -> None:
    (fault,) = faults_of(TWO.format(first, second))
    assert fault.path == path
    assert reason in fault.reason
    assert fault.line == 4


def test_a_static_flow_must_fit_its_port() -> None:
    text = """\
version: 1
bridges:
  - {name: a, static: [{mac: "02:00:00:00:00:01", port: vm1, vlan: 20}, {mac: "02:00:00:00:00:02", port: t}]}
  - {name: b}
ports:
  - {name: vm1, type: vhostuser, socket: /run/vm1.sock, bridge: a, vlan: {access: 10}}
  - {name: t, type: tap, bridge: b}
"""
    assert [(fault.path, fault.reason) for fault in faults_of(text)] == [
        ("bridges[0].static[0].vlan", "port 'vm1' does not carry VLAN 20"),
        ("bridges[0].static[1].port", "port 't' is in bridge 'b', not in this one"),
    ]


def test_all_faults_at_once_in_file_order() -> None:
    text = """\
version: 1
switch: {polling: bussy, workers: [{cpu: 99}]}
control: {mode: 0660}
metrics: {listen: nowhere}
bridges: [{name: br0, ageing: x}]
ports:
  - {name: vm1, type: vhostuser, sockt: /run/a.sock, queues: 500, vlan: {access: 1, trunk: [x]}}
  - {name: vm1, type: tapp, enabled: on, mtu: 3}
  - {name: vm1, name: vm2, type: tap}
"""
    found = [(fault.line, fault.column, fault.path) for fault in faults_of(text)]
    assert found == [
        (2, 19, "switch.polling"),
        (2, 42, "switch.workers[0].cpu"),
        (3, 17, "control.mode"),
        (4, 19, "metrics.listen"),
        (5, 31, "bridges[0].ageing"),
        (7, 5, "ports[0].socket"),
        (7, 34, "ports[0].sockt"),
        (7, 62, "ports[0].queues"),
        (7, 92, "ports[0].vlan.trunk"),
        (7, 93, "ports[0].vlan.trunk[0]"),
        (8, 12, "ports[1].name"),
        (8, 23, "ports[1].type"),
        (8, 38, "ports[1].enabled"),
        (8, 47, "ports[1].mtu"),
        (9, 12, "ports[2].name"),
        (9, 17, "ports[2].name"),
    ]


def test_a_refused_value_is_not_complained_about_twice() -> None:
    (fault,) = faults_of(port("name: t, type: tap, mac: 52:54:00:12:34:56"))
    assert (fault.path, fault.line, fault.column) == ("ports[0].mac", 4, 31)
    assert "needs quotes" in fault.reason


def test_the_message_is_one_line_for_each_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("version: 1\nswitch: {nam: x}\nprots: []\n")
    assert str(caught.value) == (
        "f:2:10: switch.nam: unknown key 'nam': did you mean 'name'?\nf:3:1: prots: unknown key 'prots': did you mean 'ports'?"
    )


def test_braces_in_a_value_do_not_upset_the_message() -> None:
    (fault,) = faults_of(port('name: "{reason}{0}%s", type: tap'))
    assert "'{reason}{0}%s' is not a name" in fault.reason


WHOLE = """\
{"version": 1,
 "switch": {"name": "s", "workers": [{"cpu": 0}, {"cpu": 2}], "memory": {"size": "8M"}},
 "control": {"socket": "/c", "mode": "0660", "group": "kvm"}, "metrics": {"listen": ":0"},
 "bridges": [{"name": "a", "ageing": "5m", "static": [{"mac": "02:00:00:00:00:01", "port": "vm", "vlan": 7}]},
             {"name": "b", "move_damping": {"moves": 3, "window": "5s", "hold": 9}}],
 "ports": [{"name": "vm", "type": "vhostuser", "bridge": "a", "socket": "/s", "vlan": {"trunk": [7, "8-9"], "native": 5}},
           {"name": "t", "type": "tap", "bridge": "b", "rx_affinity": {"0": 2}, "macs": ["02:00:00:00:00:02"]},
           {"name": "up", "type": "afpacket", "bridge": "b", "device": "eth1", "vlan": {"access": 7}},
           {"name": "fast", "type": "afxdp", "bridge": "b", "device": "eth2", "checksum": "fix"}]}"""
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    4095,
    1 << 40,
    1.5,
    "",
    "a",
    "x",
    "1",
    "all",
    "off",
    "/s",
    "{",
    "02:00:00:00:00:01",
    [],
    {},
    [[]],
    [0],
    ["x"],
    [{}],
]
ODD += [{"cpu": 0}, {"x": 1}, {"0": []}, {"access": 7}, {"trunk": [8]}, "tap", "vhostuser", "afxdp", "peer", "b"]


def spoil(tree: Any, chance: random.Random) -> Any:
    """The tree with one thing in it changed, taken away or added."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.15:
        return copy.deepcopy(chance.choice(ODD))
    tree = copy.copy(tree)
    place = chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
    act = chance.random()
    if act < 0.8:
        tree[place] = spoil(tree[place], chance)
    elif act < 0.9:
        del tree[place]
    elif isinstance(tree, dict):
        tree[chance.choice(["macs", "queues", "mtu", "blackhole", "socket_owner", "x"])] = chance.choice(ODD)
    else:
        tree.append(copy.deepcopy(chance.choice([*ODD, tree[place]])))
    return tree


@given(st.integers(0, 1 << 60), st.integers(0, 5))
def test_any_tree_is_taken_or_refused_with_places(seed: int, spoilings: int) -> None:
    chance = random.Random(seed)
    tree = json.loads(WHOLE)
    for _ in range(spoilings):
        tree = spoil(tree, chance)
    try:
        config = parse(json.dumps(tree))
    except ConfigError as error:
        found = error.faults
    else:
        found = []
        assert parse(dump_config(config)) == config
    assert spoilings or not found
    assert all(fault.reason and fault.file == "f" for fault in found)
    assert all(fault.line == 1 and fault.column > 0 for fault in found) or "is empty" in found[0].reason
