# SPDX-License-Identifier: Apache-2.0
"""The real datapath, with guests on its ports, does what the model in plain Python says, over random steps."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from switch.datapath import Datapath, DatapathOptions, PortSpec, PortStats, VlanPolicy, open_datapath
from switch.testing import Guest
from tests.model.learning_switch import BLACKHOLE, Key, LearningSwitch, Port

NAMES = ("p0", "p1", "p2", "p3")
MAC_LIMIT = 6
PATIENCE = 10.0  # seconds until something that must happen counts as not happening

vlans = st.sampled_from(
    [
        {},
        {},
        {"access": 10},
        {"access": 20},
        {"trunk": frozenset({10, 20})},
        {"trunk": frozenset({10}), "native": 20},
        {"native": 10},
    ]
)
flags = st.fixed_dictionaries(
    {
        "enabled": st.sampled_from([True] * 7 + [False]),
        "learning": st.sampled_from([True, True, False]),
        "flood": st.sampled_from([True, True, False]),
        "isolated": st.booleans(),
        "mac_limit": st.sampled_from([0, 1, 2]),
    }
)
names = st.sampled_from(NAMES)
stations = st.integers(1, 9).map(lambda number: bytes([2, 0, 0, 0, 0, number]))
destinations = st.one_of(
    stations,
    st.sampled_from([b"\xff" * 6, bytes.fromhex("01005e000001"), bytes.fromhex("0180c200000e")]),
)
sources = st.one_of(*[stations] * 9, st.sampled_from([bytes(6), bytes.fromhex("03000000000a")]))
tags = st.sampled_from([None] * 9 + [0xE000, 10, 10, 0x6014, 0x6014, 30])


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.0002)


def spec_of(port: Port, folder: Path) -> PortSpec:
    trunk = None if port.trunk is None else tuple(sorted(port.trunk))
    return PortSpec(
        name=port.name,
        type="vhostuser",
        bridge="br",
        socket=str(folder / f"{port.name}.sock"),
        vlan=VlanPolicy(access=port.access, trunk=trunk, native=port.native),
        enabled=port.enabled,
        learning=port.learning,
        flood=port.flood,
        isolated=port.isolated,
        mac_limit=port.mac_limit,
    )


class SwitchAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sw-"))
        self.model = LearningSwitch([Port(name) for name in NAMES], MAC_LIMIT)
        self.datapath: Datapath = open_datapath(DatapathOptions(workers=(0,), pin=False, hugepages="off"))
        self.guests: dict[str, Guest] = {}
        self.frames = 0
        self.datapath.start()
        self.datapath.add_bridge("br", ageing=300, mac_limit=MAC_LIMIT)
        for name in NAMES:
            spec = spec_of(self.model.ports[name], self.folder)
            self.datapath.add_port(spec)
            self.guests[name] = Guest(spec.socket).__enter__()
            self.guests[name].wait_ready(PATIENCE)
        until(lambda: all(port.up for port in self.datapath.ports()), "all ports are up")

    def teardown(self) -> None:
        for guest in self.guests.values():
            guest.stop()
        self.datapath.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what a person does

    @initialize(plain=st.booleans(), policies=st.lists(st.tuples(vlans, flags), min_size=4, max_size=4))
    def begin(self, plain: bool, policies: list[tuple[dict[str, object], dict[str, object]]]) -> None:
        for name, (vlan, flag) in zip(NAMES, policies, strict=True):
            self.change(replace(Port(name), **({} if plain else vlan), **flag))  # type: ignore[arg-type]

    @rule(name=names, vlan=vlans)
    def change_vlan(self, name: str, vlan: dict[str, object]) -> None:
        without = replace(self.model.ports[name], access=None, trunk=None, native=0)
        self.change(replace(without, **vlan))  # type: ignore[arg-type]

    @rule(name=names, flag=flags)
    def change_flags(self, name: str, flag: dict[str, object]) -> None:
        self.change(replace(self.model.ports[name], **flag))  # type: ignore[arg-type]

    def change(self, port: Port) -> None:
        before = self.model.ports[port.name]
        self.datapath.set_port(spec_of(port, self.folder))
        self.model.set_port(port)
        if not port.enabled or (before.access, before.trunk, before.native) != (port.access, port.trunk, port.native):
            self.model.flush(port=port.name)  # what was learned there may be unreachable now

    @rule(name=st.sampled_from([*NAMES, BLACKHOLE]), vlan=st.sampled_from([0, 10, 20]), mac=stations)
    def add_static(self, name: str, vlan: int, mac: bytes) -> None:
        if (vlan, mac) not in self.model.table and len(self.model.table) >= MAC_LIMIT:
            return
        self.datapath.fdb_set("br", vlan, int.from_bytes(mac, "big"), name, "static")
        self.model.set_entry(vlan, mac, name)

    @rule(vlan=st.sampled_from([0, 10, 20]), mac=stations)
    def delete_entry(self, vlan: int, mac: bytes) -> None:
        removed = self.datapath.fdb_del("br", vlan, int.from_bytes(mac, "big"))
        assert removed == self.model.remove_entry(vlan, mac)

    @rule(name=st.one_of(st.none(), names))
    def flush(self, name: str | None) -> None:
        self.datapath.fdb_flush("br", name, None, None)
        self.model.flush(port=name)

    # ---- what a guest does

    @rule(name=names, frames=st.lists(st.tuples(destinations, sources, tags), min_size=6, max_size=20))
    def send_some(self, name: str, frames: list[tuple[bytes, bytes, int | None]]) -> None:
        for destination, source, tag in frames:
            self.send(name, destination, source, tag)
            self.nobody_got_anything_else()
            self.tables_agree()

    def send(self, name: str, destination: bytes, source: bytes, tag: int | None) -> None:
        self.frames += 1
        type_ = b"\x08\x00" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big") + b"\x08\x00"
        frame = destination + source + type_ + self.frames.to_bytes(4, "big") + bytes(42)
        self.datapath.drain_events()
        before = self.port_stats(name)
        received = sum(queue.frames for queue in before.rx)
        self.guests[name].send(frame)

        def decided() -> bool:
            now = self.port_stats(name)
            frames = sum(queue.frames for queue in now.rx)
            done = now.forwarded + sum(now.rx_drops.values()) - now.replicated
            return frames == received + 1 and done == frames

        until(decided, f"the switch has taken the frame from {name}")
        evicted = [
            (event.vlan, event.mac.to_bytes(6, "big"))
            for event in self.datapath.drain_events()
            if event.kind == "fdb_evicted"
        ]

        def choose(candidates: list[Key]) -> Key:
            assert len(evicted) == 1
            assert evicted[0] in candidates
            return evicted.pop()

        outcome = self.model.receive(name, frame, choose)
        assert not evicted, "the switch evicted an entry without need"
        after = self.port_stats(name)
        dropped = {reason for reason, count in after.rx_drops.items() if count != before.rx_drops[reason]}
        assert dropped == ({outcome.drop} if outcome.drop else set())
        for to, expected in outcome.deliveries.items():
            assert self.guests[to].recv(PATIENCE) == expected, f"from {name} to {to}"

    def port_stats(self, name: str) -> PortStats:
        return next(port for port in self.datapath.stats().ports if port.name == name)

    @invariant()
    def nobody_got_anything_else(self) -> None:
        assert {name: guest.drain() for name, guest in self.guests.items()} == {name: [] for name in self.guests}

    @invariant()
    def tables_agree(self) -> None:
        real = {(e.vlan, e.mac.to_bytes(6, "big")): (e.port, e.owner) for e in self.datapath.fdb("br")[0]}
        assert real == {key: (entry.port, entry.owner) for key, entry in self.model.table.items()}


# A failing example waits for a frame that never comes, so shrinking it would take minutes.
SwitchAgainstModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestSwitchAgainstModel = SwitchAgainstModel.TestCase
