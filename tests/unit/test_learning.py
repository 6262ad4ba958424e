# SPDX-License-Identifier: Apache-2.0
"""The policy of MAC learning flows, with a clock of our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.datapath import Event, FdbGroup, PortSpec
from switch.errors import FdbError
from switch.learning import Damping, Flow, Learning
from tests.support.memory_datapath import MemoryDatapath

MAC = 0x525400123456


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def macs(*addresses: int) -> bytes:
    return b"".join(mac.to_bytes(6, "big") for mac in addresses)


class House:
    """A datapath with two ports, the policy over it, and what the policy announced."""

    def __init__(self, damping: Damping | None = None) -> None:
        self.datapath = MemoryDatapath()
        self.datapath.add_bridge("br0", 300, 1024)
        for name in ("vm1", "vm2"):
            self.datapath.add_port(PortSpec(name, "vhostuser", "br0", socket=f"/run/{name}.sock"))
        self.clock = Clock()
        self.announced: list[Event] = []
        self.learning = Learning(
            self.datapath,
            {"br0": damping or Damping(6, 10, 10)},
            emit=self.announced.append,
            clock=self.clock,
            wall=self.clock,
            history=50,
        )

    def move(self, to: str, mac: int = MAC, vlan: int = 10, kind: str = "fdb_moved") -> None:
        other = "vm1" if to == "vm2" else "vm2"
        self.learning.observe([Event(self.clock.now, kind, "br0", to, other, vlan, mac)])

    def flap(self, times: int, step: float = 0.1, mac: int = MAC) -> None:
        for number in range(times):
            self.move("vm2" if number % 2 == 0 else "vm1", mac)
            self.clock.now += step


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.datapath.close()


def test_five_moves_in_the_window_are_tolerated(house: House) -> None:
    house.flap(5)
    assert house.learning.held == []
    assert house.announced == []


def test_the_sixth_move_holds_the_flow_at_the_port_it_left_first(house: House) -> None:
    house.flap(6)
    entry = house.datapath.flows["br0", 10, MAC]
    assert (entry.port, entry.owner) == ("vm1", "held")
    (event,) = house.announced
    assert (event.kind, event.port, event.old_port) == ("fdb_move_damped", "vm1", "vm2")
    for word in ("52:54:00:12:34:56", "VLAN 10", "moved 6 times", "vm1", "vm2", "moves a second", "10 s"):
        assert word in event.detail


def test_zero_moves_never_hold() -> None:
    house = House(Damping(moves=0))
    house.flap(100)
    assert house.learning.held == []
    house.datapath.close()


def test_slow_moves_never_hold(house: House) -> None:
    house.flap(50, step=2.5)
    assert house.learning.held == []


def test_a_clock_that_is_set_back_holds_nobody(house: House) -> None:
    for _ in range(5):  # a move now and then, an hour back each time
        house.flap(1)
        house.clock.now -= 3600
    house.flap(2)
    assert house.learning.held == []


def test_moves_of_a_held_flow_change_nothing(house: House) -> None:
    house.flap(6)
    before = list(house.datapath.calls)
    house.flap(20)
    assert house.datapath.calls == before


def test_a_hold_ends_and_the_flow_is_learned_again(house: House) -> None:
    house.flap(6)
    house.clock.now += 9.8
    house.learning.tick()
    assert house.datapath.flows["br0", 10, MAC].owner == "held"
    house.clock.now += 1.0
    house.learning.tick()
    assert house.datapath.flows["br0", 10, MAC].owner == "learned"
    assert [event.kind for event in house.announced] == ["fdb_move_damped", "fdb_move_released"]
    house.flap(6)
    assert house.learning.held == [("br0", 10, MAC)]


def test_vlans_and_macs_are_counted_apart(house: House) -> None:
    for number in range(5):
        house.move("vm2" if number % 2 == 0 else "vm1", vlan=10)
        house.move("vm2" if number % 2 == 0 else "vm1", vlan=20)
        house.move("vm2" if number % 2 == 0 else "vm1", mac=MAC + 1)
    assert house.learning.held == []


def test_a_hold_whose_port_is_gone_is_no_error(house: House) -> None:
    house.datapath.del_port("vm1")
    house.flap(6)
    assert house.learning.held == []
    assert house.announced == []


def test_a_flood_of_moving_macs_tracks_a_bounded_number() -> None:
    house = House()
    learning = Learning(house.datapath, clock=house.clock, wall=house.clock, tracked=100)
    learning.observe(Event(1000.0, "fdb_moved", "br0", "vm2", "vm1", 0, mac) for mac in range(1, 5000))
    assert len(learning._moves) == 100
    house.datapath.close()


def test_a_flood_of_moving_macs_is_announced_a_bounded_number_of_times(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for mac in range(MAC, MAC + 500):
        house.flap(6, 0.0, mac)
    assert len(house.learning.held) == 500
    assert [event.kind for event in house.announced] == ["fdb_move_damped"] * 64
    assert sum("moved 6 times" in line for line in caplog.messages) == 64
    house.clock.now += 61
    house.learning.tick()
    assert not house.learning.held
    assert [event.kind for event in house.announced[64:]] == ["fdb_move_released"] * 64
    assert "436 more addresses moved too often and were held" in caplog.messages
    house.flap(6)
    assert house.announced[-1].kind == "fdb_move_damped"


def test_tick_sweeps_once(house: House) -> None:
    house.learning.tick()
    house.learning.tick()
    assert house.datapath.sweeps == 2


def test_history_is_bounded_and_found_by_mac(house: House) -> None:
    house.move("vm1", kind="fdb_learned")
    house.move("vm2")
    house.move("vm2", mac=MAC + 1, kind="fdb_learned")
    assert [event.kind for event in house.learning.history("br0", MAC)] == ["fdb_learned", "fdb_moved"]
    assert house.learning.history("br1") == []
    assert len(house.learning.history(limit=1)) == 1
    for _ in range(100):
        house.move("vm2", mac=MAC + 2, kind="fdb_aged")
    assert len(house.learning.history("br0")) == 50


def test_events_of_ports_are_not_history(house: House) -> None:
    house.learning.observe([Event(1.0, "port_connected", port="vm1")])
    assert house.learning.history() == []


def test_a_static_flow_is_set_and_comes_back_with_its_port(house: House) -> None:
    flow = Flow("br0", 10, MAC, "vm1")
    house.learning.add(flow)
    assert house.datapath.flows[flow.key].owner == "static"
    spec = house.datapath.specs["vm1"]
    house.datapath.del_port("vm1")
    house.datapath.add_port(spec)
    house.learning.port_added("vm1")
    assert house.datapath.flows[flow.key].owner == "static"
    house.learning.port_deleted("vm1")
    assert house.learning.flows == []


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (Flow("br0", 10, 0x01005E000001, "vm1"), "group address"),
        (Flow("br0", 10, 0, "vm1"), "not a MAC address of a host"),
        (Flow("br0", 5000, MAC, "vm1"), "VLAN 5000"),
        (Flow("br0", 10, MAC, "vm1", "learned"), "static or external"),
        (Flow("br0", 10, MAC, "", "external"), "only a static flow"),
        (Flow("br0", 10, MAC, "vm9"), "vm9"),
        (Flow("br9", 10, MAC, "vm1"), "br9"),
    ],
)
def test_a_flow_that_makes_no_sense_is_refused(house: House, flow: Flow, words: str) -> None:
    with pytest.raises(FdbError, match=words):
        house.learning.add(flow)
    assert house.learning.flows == []


def test_flush_spares_static_flows_unless_named(house: House) -> None:
    house.learning.add(Flow("br0", 10, MAC, "vm1"))
    house.datapath.fdb_set("br0", 10, MAC + 1, "vm1", "learned")
    assert house.learning.flush("br0") == 1
    assert len(house.learning.flows) == 1
    assert house.learning.flush("br0", owner="static") == 1
    assert house.learning.flows == []
    with pytest.raises(FdbError, match="owner"):
        house.learning.flush("br0", owner="nobody")


def test_flushing_a_held_flow_ends_its_hold(house: House) -> None:
    house.flap(6)
    house.learning.flush("br0", port="vm2")
    assert house.learning.held == [("br0", 10, MAC)]
    house.learning.flush("br0", port="vm1")
    assert house.learning.held == []


def test_deleting_a_flow_says_whether_there_was_one(house: House) -> None:
    house.learning.add(Flow("br0", 10, MAC, "vm1"))
    assert house.learning.delete("br0", 10, MAC)
    assert not house.learning.delete("br0", 10, MAC)


def test_learned_flows_are_restored_where_their_port_and_time_allow(house: House) -> None:
    saved = [
        FdbGroup("br0", 0, "vm1", 10, macs(MAC, MAC + 4)),
        FdbGroup("br0", 0, "vm1", 290, macs(MAC + 1)),
        FdbGroup("br0", 0, "vm9", 0, macs(MAC + 2)),
        FdbGroup("br9", 0, "vm1", 0, macs(MAC + 3)),
    ]
    assert house.learning.restore_learned(saved, away=20.0, ageing={"br0": 300}) == 2
    assert set(house.datapath.flows) == {("br0", 0, MAC), ("br0", 0, MAC + 4)}
    assert house.learning.restore_learned(saved, away=1e9, ageing={"br0": 0}) == 1  # the others are there


def test_what_is_pinned_is_not_replaced_by_what_was_learned(house: House) -> None:
    house.learning.add(Flow("br0", 0, MAC, "vm2"))
    assert house.learning.restore_learned([FdbGroup("br0", 0, "vm1", 0, macs(MAC))], 0.0, {"br0": 300}) == 0
    assert house.datapath.flows["br0", 0, MAC].owner == "static"


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 8.0)), max_size=80))
def test_a_flow_is_held_exactly_when_six_moves_fall_into_ten_seconds(moves: list[tuple[bool, float]]) -> None:
    house = House()
    try:
        times: list[float] = []
        for to_second, step in moves:
            house.clock.now += step
            house.move("vm2" if to_second else "vm1")
            times = [when for when in times if when > house.clock.now - 10.0] + [house.clock.now]
            assert bool(house.learning.held) == (len(times) >= 6)
            if house.learning.held:
                return
    finally:
        house.datapath.close()
