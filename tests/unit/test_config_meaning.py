# SPDX-License-Identifier: Apache-2.0

"""What a valid configuration means: defaults, units, paths, and what the datapath is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from switch.config.machine import ANY_MACHINE, Machine
from switch.config.models import Config
from switch.config.parse import load_config, parse_config
from switch.errors import ConfigError

MACHINE = Machine(frozenset({0, 1, 2, 6}), {"kvm": 36, "0": 0}.get)
VM = "name: vm1, type: vhostuser, socket: /run/vm1.sock"


def parse(text: str, **more: Any) -> Config:
    return parse_config(text, "f", machine=more.pop("machine", MACHINE), **more)


def port(body: str, more: str = "") -> str:
    return f"version: 1\n{more}\nports:\n  - {{{body}}}\n"


def test_defaults() -> None:
    config = parse("version: 1\n")
    assert config.switch.name == "sw0"
    assert config.switch.workers is None
    assert config.control.socket == "/run/switch/control.sock"
    assert config.control.mode == 0o660
    assert config.metrics.listen == ("127.0.0.1", 9480)
    (bridge,) = config.all_bridges()
    assert (bridge.name, bridge.ageing, bridge.mac_limit, bridge.static) == ("br0", 300, 65536, ())
    assert (bridge.move_damping.moves, bridge.move_damping.window, bridge.move_damping.hold) == (6, 10, 10)
    assert config.ports == ()


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ('"127.0.0.1:9480"', ("127.0.0.1", 9480)),
        ("127.0.0.1:9480", ("127.0.0.1", 9480)),
        ('"[::1]:9480"', ("::1", 9480)),
        ('":9480"', ("", 9480)),
        ("localhost:0", ("localhost", 0)),
        ("off", None),
        ('"off"', None),
        ("null", None),
        ("", None),
    ],
)
def test_metrics_addresses(listen: str, address: tuple[str, int] | None) -> None:
    assert parse(f"version: 1\nmetrics: {{listen: {listen}}}").metrics.listen == address


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ('"5m"', 300), ("2h", 7200), ("1d", 86400), ("0", 0)]
)
def test_durations(written: str, seconds: int) -> None:
    assert parse(f"version: 1\nbridges: [{{name: a, ageing: {written}}}]").bridges[0].ageing == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("2097152", 2 << 20), ("2M", 2 << 20), ("2048K", 2 << 20), ("1GiB", 1 << 30), ('"3 MB"', 3 << 20)],
)
def test_sizes(written: str, size: int) -> None:
    assert parse(f"version: 1\nswitch: {{memory: {{size: {written}}}}}").switch.memory.size == size


def test_a_group_is_a_name_or_a_number() -> None:
    assert parse("version: 1\ncontrol: {group: kvm}").control.group == "kvm"
    assert parse("version: 1\ncontrol: {group: 0}").control.group == "0"
    (spec,) = parse(port(f"{VM}, socket_group: kvm")).port_specs(MACHINE)
    assert spec.socket_gid == 36


def test_a_group_that_vanished_since_is_told() -> None:
    config = parse(port(f"{VM}, socket_group: kvm"))
    with pytest.raises(ConfigError, match="there is no group 'kvm' on this machine any more"):
        config.port_specs(Machine(None, lambda group: None))


def test_empty_lists_may_be_left_empty() -> None:
    assert parse("version: 1\nports:\nbridges:\n") == parse("version: 1\n")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sw.yaml"
    file.write_text("version: 1\ncontrol: {socket: run/./c.sock}\nswitch: {state_dir: ../state}\n")
    config = load_config(file, MACHINE)
    assert config.control.socket == f"{tmp_path}/run/c.sock"
    assert config.switch.state_dir == f"{tmp_path}/../state"


def test_a_relative_path_given_on_the_command_line_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sw.yaml").write_text("version: 1\ncontrol: {socket: c.sock}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("sw.yaml", MACHINE).control.socket == f"{tmp_path}/c.sock"


def test_a_socket_path_of_107_bytes_is_taken() -> None:
    path = "/" + "x" * 106
    assert parse(f"version: 1\ncontrol: {{socket: {path}}}").control.socket == path


def test_the_machine_chooses_the_worker_that_the_file_leaves_open() -> None:
    config = parse("version: 1\n")
    assert config.datapath_options(MACHINE).workers == (6,)
    assert config.datapath_options(MACHINE).pin
    assert not config.datapath_options(Machine(frozenset({3}))).pin
    assert config.datapath_options(Machine(frozenset({3}))).workers == (3,)
    given = parse(
        "version: 1\nswitch: {workers: [{cpu: 2}, {cpu: 0}], polling: busy, memory: {size: 8M, hugepages: off}}"
    )
    options = given.datapath_options(Machine(frozenset({0})))
    assert (options.workers, options.polling, options.memory_bytes, options.hugepages) == (
        (2, 0),
        "busy",
        8 << 20,
        "off",
    )
    assert options.pin


def test_here_is_a_machine() -> None:
    assert parse_config("version: 1\n").datapath_options().workers[0] in (Machine.here().cpus or ())


def test_any_machine_takes_every_cpu_and_group() -> None:
    text = port("name: t, type: tap, rx_affinity: {0: 70}", "switch: {workers: [{cpu: 70}]}\ncontrol: {group: nosuch}")
    assert parse(text, machine=ANY_MACHINE).ports[0].rx_affinity == {0: 70}


def test_port_specs() -> None:
    text = """\
version: 1
bridges: [{name: lan}]
ports:
  - {name: vm1, type: vhostuser, socket: /run/vm1.sock, queues: 2, vlan: {trunk: [10, "20-22"], native: 10},
     socket_mode: "0600", packed: false, mtu: 9000, rx_affinity: {1: 6}, enabled: false, mac_limit: 7}
  - {name: vu, type: virtiouser, socket: /run/vu.sock, in_order: false, ring_size: 1024}
  - {name: t, type: tap, isolated: true, flood: false, learning: false, mac: "52:54:00:12:34:56",
     vhost: true}
  - {name: up, type: afpacket, device: eth1, vlan: {access: 30}}
  - {name: fast, type: afxdp, device: eth2, queues: 4, checksum: trust}
"""
    vm1, vu, tap, up, fast = parse(text).port_specs(MACHINE)
    assert (vm1.name, vm1.type, vm1.bridge, vm1.socket, vm1.socket_owner) == (
        "vm1",
        "vhostuser",
        "lan",
        "/run/vm1.sock",
        "switch",
    )
    assert (vm1.vlan.access, vm1.vlan.trunk, vm1.vlan.native) == (None, (10, 20, 21, 22), 10)
    assert (vm1.queues, vm1.socket_mode, vm1.packed, vm1.mtu, vm1.enabled) == (2, 0o600, False, 9000, False)
    assert (dict(vm1.rx_affinity), vm1.mac_limit) == ({1: 6}, 7)
    assert (vu.socket_owner, vu.in_order, vu.ring_size) == ("peer", False, 1024)
    assert (tap.vhost, vm1.vhost) == (True, False)
    assert (tap.device, tap.mac, tap.isolated, tap.flood, tap.learning) == ("", 0x525400123456, True, False, False)
    assert (tap.vlan.access, tap.vlan.trunk, tap.vlan.native) == (None, None, 0)
    assert (up.device, up.vlan.access, up.checksum) == ("eth1", 30, "auto")
    assert (fast.type, fast.device, fast.queues, fast.checksum) == ("afxdp", "eth2", 4, "trust")


def test_static_flows() -> None:
    text = """\
version: 1
bridges:
  - name: br0
    static:
      - {mac: "02:00:00:00:00:01", port: acc}
      - {mac: "02:00:00:00:00:01", port: trunk}
      - {mac: "02:00:00:00:00:01", port: trunk, vlan: 20}
      - {mac: "02:00:00:00:00:02", blackhole: true, vlan: 7}
ports:
  - {name: acc, type: tap, vlan: {access: 10}, macs: ["02:00:00:00:00:03"]}
  - {name: trunk, type: tap, vlan: {trunk: [20], native: 5}}
  - {name: plain, type: tap, macs: ["02:00:00:00:00:03"]}
"""
    flows = {(flow.vlan, flow.mac & 0xFF, flow.port) for flow in parse(text).static_flows()}
    assert flows == {(10, 1, "acc"), (5, 1, "trunk"), (20, 1, "trunk"), (7, 2, ""), (10, 3, "acc"), (0, 3, "plain")}
