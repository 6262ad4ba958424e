# SPDX-License-Identifier: Apache-2.0
"""What `swctl save` writes is valid and is what runs, whatever was done before: random verbs, then save, validate,
plan."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switch.config import parse_config
from switch.control import Control
from switch.datapath import VlanPolicy
from switch.errors import PortError, SwitchError
from switch.learning import Flow
from tests.support.daemon import MACHINE, make_control
from tests.support.memory_datapath import MemoryDatapath

MAC = 0x525400000001
TEXT = """version: 1
switch: {{workers: [{{cpu: 2}}, {{cpu: 3}}]}}
control: {{socket: {folder}/c.sock}}
bridges:
  - name: br0
    static: [{{mac: "52:54:00:00:00:01", vlan: 10, port: vm1}}, {{mac: "52:54:00:00:00:02", blackhole: true}}]
  - name: br1
ports:
  - {{name: vm1, type: vhostuser, bridge: br0, socket: {folder}/vm1.sock, vlan: {{access: 10}}}}
  - {{name: vm2, type: vhostuser, bridge: br0, socket: {folder}/vm2.sock, macs: ["52:54:00:00:00:03"]}}
  - {{name: vm3, type: tap, bridge: br1, device: tap3, vlan: {{trunk: [10, 20], native: 20}}}}
"""

names = st.sampled_from(["vm1", "vm2", "vm3", "new1", "new2"])
bridges = st.sampled_from(["br0", "br1"])
vids = st.sampled_from([0, 10, 20, 30])
macs = st.integers(MAC, MAC + 4)
vlans = st.sampled_from(
    [{"access": 10}, {"access": 20}, {"trunk": "all"}, {"trunk": "all", "native": 10}, {"trunk": [10, 20]},
     {"trunk": [10, 30], "native": 20}, None]
)  # fmt: skip
changes = st.fixed_dictionaries(
    {},
    optional={
        "vlan": vlans,
        "bridge": bridges,
        "macs": st.lists(macs.map(lambda mac: mac.to_bytes(6, "big").hex(":")), max_size=2, unique=True),
        "isolated": st.booleans(),
        "mtu": st.sampled_from([0, 1500, 9000, None]),
        "queues": st.sampled_from([1, 2]),
        "rx_affinity": st.sampled_from([{"0": 2}, {"0": 3}, {"0": 7}, {}]),
    },
)
verbs = st.one_of(
    st.tuples(st.just("add"), names, changes),
    st.tuples(st.just("set"), names, changes),
    st.tuples(st.just("set"), names, changes),
    st.tuples(st.just("del"), names),
    st.tuples(st.just("pin"), bridges, vids, macs, st.sampled_from(["vm1", "vm2", "vm3", "new1", ""])),
    st.tuples(st.just("pin"), bridges, vids, macs, st.sampled_from(["vm1", "vm2", "vm3", "new1", ""])),
    st.tuples(st.just("unpin"), bridges, vids, macs),
    st.tuples(st.just("flush"), bridges),
    st.tuples(st.just("file")),
    st.tuples(st.just("save")),
    st.tuples(st.just("rollback")),
    st.tuples(st.just("restart")),
)


class World:
    """A switch whose verbs are played one after the other; what is refused leaves it as it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = TEXT.format(folder=folder)
        self.control = make_control(folder, text=self.text)

    @property
    def datapath(self) -> MemoryDatapath:
        assert isinstance(self.control.datapath, MemoryDatapath)
        return self.control.datapath

    async def play(self, verb: tuple[Any, ...]) -> None:
        control, (kind, *given) = self.control, verb
        match kind:
            case "add":
                name, keys = given
                keys = {"bridge": "br0", **keys}
                await control.add_port(
                    {"name": name, "type": "vhostuser", "socket": f"{self.folder}/{name}.sock", **keys}
                )
            case "set":
                await control.set_port(*given)
            case "del":
                await control.del_port(given[0])
            case "pin":
                bridge, vlan, mac, port = given
                await control.add_flow(Flow(bridge, vlan, mac, port))
            case "unpin":
                await control.delete_flow(*given)
            case "flush":
                await control.flush(given[0], None, None, "static")
            case "file":
                await control.apply(parse_config(self.text, "file", self.folder, MACHINE))
            case "save":
                await control.apply(parse_config(control.running_yaml(), "saved", self.folder, MACHINE))
            case "rollback":
                await control.rollback()
            case "restart":
                saved = control.snapshot()
                self.datapath.close()
                self.control = make_control(self.folder, text=self.text, saved=saved)

    def check(self) -> None:
        text = self.control.running_yaml()
        config = parse_config(text, "saved", self.folder, MACHINE)
        planned = self.control.plan(config)
        assert [step.describe() for step in planned.steps] == [], text
        assert (planned.restart, planned.kept) == ([], [])
        state = config.state(MACHINE)
        assert {port.name: port for port in state.ports} == self.datapath.specs
        set_there = {
            (*key, entry.port) for key, entry in self.datapath.flows.items() if entry.owner in ("static", "external")
        }
        assert {(flow.bridge, flow.vlan, flow.mac, flow.port) for flow in state.flows} == set_there, text


@settings(max_examples=60)
@given(st.lists(verbs, max_size=10))
def test_what_is_saved_is_valid_and_is_what_runs(sequence: list[tuple[Any, ...]]) -> None:
    async def scenario(world: World) -> None:
        for verb in sequence:
            with contextlib.suppress(SwitchError):
                await world.play(verb)
            world.check()

    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        world = World(Path(folder))
        try:
            asyncio.run(scenario(world))
        finally:
            world.datapath.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def pins(control: Control) -> dict[tuple[str, int, int], str]:
    assert isinstance(control.datapath, MemoryDatapath)
    return {key: entry.port for key, entry in control.datapath.flows.items()}


ROWS = [
    # what the port carries, where an address is pinned, what it is to carry, where the address is then; -1: refused
    ({"access": 10}, 10, {"access": 20}, 20),
    ({"access": 10}, 10, {"trunk": [10, 20], "native": 20}, 20),
    ({"access": 10}, 10, {"trunk": [10, 20]}, 10),
    ({"access": 10}, 10, {"trunk": [20, 30]}, -1),
    ({"trunk": [10, 20]}, 10, {"trunk": [10, 30]}, 10),
    ({"trunk": [10, 20]}, 20, {"trunk": [10, 30]}, -1),
    ({"trunk": [10, 20]}, 20, {"access": 10}, -1),
    ({"trunk": "all", "native": 20}, 30, {"trunk": [20, 30], "native": 30}, 30),
    ({"trunk": "all"}, 0, {"access": 10}, 10),
    ({"trunk": "all"}, 30, {"access": 10}, -1),
]


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("before", "at", "after", "then"), ROWS)
def test_pinned_addresses_go_with_the_port_or_keep_it(
    folder: Path, before: dict[str, Any], at: int, after: dict[str, Any], then: int, by_hand: bool
) -> None:
    static = (
        f"bridges: [{{name: br0, static: [{{mac: '52:54:00:00:00:01', port: p{f', vlan: {at}' if at else ''}}}]}}]\n"
    )
    vlan = str(before).replace("'", "")
    text = (
        f"version: 1\nswitch: {{workers: [{{cpu: 2}}]}}\n{'' if by_hand else static}"
        f"ports: [{{name: p, type: vhostuser, socket: {folder}/p.sock, vlan: {vlan}}}]\n"
    )
    control = make_control(folder, text=text)
    if by_hand:
        run(control.add_flow(Flow("br0", at, MAC, "p")))
    if then < 0:
        with pytest.raises(PortError, match=rf"52:54:00:00:00:01 in VLAN {at}; remove them first \(swctl fdb del"):
            run(control.set_port("p", {"vlan": after}))
        assert pins(control) == {("br0", at, MAC): "p"}
    else:
        run(control.set_port("p", {"vlan": after}))
        assert pins(control) == {("br0", then, MAC): "p"}
    parse_config(control.running_yaml(), "saved", folder, MACHINE)


def test_an_address_is_not_pinned_where_its_port_does_not_carry_the_vlan(folder: Path) -> None:
    control = make_control(folder)  # vm1: access 10
    with pytest.raises(SwitchError, match="does not carry VLAN 0; its untagged frames are in VLAN 10"):
        run(control.add_flow(Flow("br0", 0, MAC, "vm1")))
    with pytest.raises(SwitchError, match="port vm1 does not carry VLAN 20"):
        run(control.add_flow(Flow("br0", 20, MAC, "vm1")))
    run(control.add_flow(Flow("br0", 20, MAC, "vm1", "external")))  # who owns it may be about to change the port


def test_a_restart_comes_up_where_a_port_of_the_file_was_moved_to_another_bridge(folder: Path) -> None:
    text = TEXT.format(folder=folder)
    control = make_control(folder, text=text)
    run(control.set_port("vm1", {"bridge": "br1"}))
    again = make_control(folder, text=text, saved=control.snapshot())
    assert pins(again)["br1", 10, MAC] == "vm1"
    assert ("br0", 10, MAC) not in pins(again)


def test_going_back_keeps_what_was_pinned_by_hand_and_saved(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_flow(Flow("br0", 10, MAC, "vm1")))
    saved = control.running_yaml().replace("name: vm2", "name: vm9").replace("vm2.sock", "vm9.sock")
    run(control.apply(parse_config(saved, "saved", folder, MACHINE)))
    run(control.rollback())
    assert pins(control) == {("br0", 10, MAC): "vm1"}


def test_a_queue_is_not_pinned_to_a_cpu_without_worker(folder: Path) -> None:
    control = make_control(folder)
    with pytest.raises(SwitchError, match="no worker runs on CPU 7: they run on 2"):
        run(control.set_port("vm1", {"rx_affinity": {"0": 7}}))
    assert control.reconciler.ports["vm1"].vlan == VlanPolicy(access=10)
