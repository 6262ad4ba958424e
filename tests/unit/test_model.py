# SPDX-License-Identifier: Apache-2.0
"""The model that the real switch is compared with must itself be right: rows of frames with known answers."""

from __future__ import annotations

import pytest

from tests.model.learning_switch import BLACKHOLE, Entry, LearningSwitch, Port, reserved

A, B, C = (bytes.fromhex(f"0200000000{last}") for last in ("0a", "0b", "0c"))
ALL = b"\xff" * 6


def frame(to: bytes, source: bytes, tci: int | None = None, payload: bytes = b"\x08\x00data") -> bytes:
    return to + source + (b"" if tci is None else b"\x81\x00" + tci.to_bytes(2, "big")) + payload


def three(**changes: object) -> LearningSwitch:
    return LearningSwitch([Port("p1", **changes), Port("p2"), Port("p3")])  # type: ignore[arg-type]


def test_unknown_destination_floods_until_it_answers() -> None:
    switch = three()
    assert set(switch.receive("p1", frame(B, A)).deliveries) == {"p2", "p3"}
    assert set(switch.receive("p2", frame(A, B)).deliveries) == {"p1"}
    assert set(switch.receive("p1", frame(B, A)).deliveries) == {"p2"}


def test_frame_to_its_own_port_is_dropped_but_teaches() -> None:
    switch = three()
    switch.receive("p1", frame(ALL, A))
    assert switch.receive("p1", frame(A, B)).drop == "hairpin"
    assert switch.table[0, B] == Entry("p1", "learned", 0)


def test_address_moves_to_where_it_is_seen() -> None:
    switch = three()
    switch.receive("p1", frame(ALL, A))
    switch.receive("p3", frame(ALL, A))
    assert switch.table[0, A].port == "p3"


def test_static_entry_stays_and_the_frame_is_still_forwarded() -> None:
    switch = three()
    switch.set_entry(0, A, "p3")
    assert switch.receive("p1", frame(ALL, A)).deliveries.keys() == {"p2", "p3"}
    assert switch.table[0, A].port == "p3"
    switch.flush()
    assert switch.table[0, A].port == "p3"


def test_plain_ports_pass_tags_as_they_are() -> None:
    switch = three()
    for tci in (0xE000, 0x600A):
        tagged = frame(ALL, A, tci)
        assert switch.receive("p1", tagged).deliveries == {"p2": tagged, "p3": tagged}


@pytest.mark.parametrize(
    ("sender", "sent", "expected"),
    [
        ("access10", None, {"trunk": 0x000A, "native10": None}),
        ("access10", 0xE000, {"trunk": 0xE00A, "native10": None}),
        ("trunk", 0x600A, {"access10": None, "native10": None}),
        ("trunk", 0x6014, {"native10": 0x6014}),
        ("native10", None, {"access10": None, "trunk": 0x000A}),
        ("native10", 0x000A, {"access10": None, "trunk": 0x000A}),
    ],
)
def test_vlan_shaping(sender: str, sent: int | None, expected: dict[str, int | None]) -> None:
    switch = LearningSwitch(
        [
            Port("access10", access=10),
            Port("trunk", trunk=frozenset({10, 20})),
            Port("native10", trunk=frozenset({20}), native=10),
        ]
    )
    outcome = switch.receive(sender, frame(ALL, A, sent))
    assert outcome.deliveries == {name: frame(ALL, A, tci) for name, tci in expected.items()}


@pytest.mark.parametrize(
    ("port", "sent", "reason"),
    [
        (Port("p1", access=10), frame(ALL, A, 10), "vlan_not_allowed"),
        (Port("p1", trunk=frozenset({10})), frame(ALL, A, 11), "vlan_not_allowed"),
        (Port("p1", enabled=False), frame(ALL, A), "port_disabled"),
        (Port("p1"), frame(ALL, A)[:12] + b"\x81\x00\x00", "vlan_malformed"),
        (Port("p1"), frame(b"\x01\x80\xc2\0\0\x0e", A), "reserved_mac"),
        (Port("p1"), frame(B, bytes(6)), "source_zero"),
        (Port("p1"), frame(B, ALL), "source_multicast"),
        (Port("p1"), b"short", "frame_too_short"),
    ],
)
def test_frames_that_do_not_enter_teach_nothing(port: Port, sent: bytes, reason: str) -> None:
    switch = LearningSwitch([port, Port("p2")])
    assert switch.receive("p1", sent).drop == reason
    assert switch.table == {}


def test_untagged_traffic_of_a_plain_trunk_does_not_leak_into_a_native_vlan() -> None:
    switch = LearningSwitch([Port("p1"), Port("p2", native=10), Port("p3")])
    assert switch.receive("p1", frame(ALL, A)).deliveries.keys() == {"p3"}


def test_isolated_ports_reach_only_open_ones() -> None:
    switch = LearningSwitch([Port("p1", isolated=True), Port("p2", isolated=True), Port("p3")])
    assert switch.receive("p1", frame(ALL, A)).deliveries.keys() == {"p3"}
    assert switch.receive("p2", frame(A, B)).drop == "isolated"


def test_flood_flag_concerns_unknown_unicast_only() -> None:
    switch = LearningSwitch([Port("p1"), Port("p2", flood=False)])
    assert switch.receive("p1", frame(B, A)).drop == "flood_disabled"
    assert switch.receive("p1", frame(ALL, A)).deliveries.keys() == {"p2"}


def test_known_destination_that_cannot_be_reached_names_the_reason() -> None:
    switch = LearningSwitch([Port("p1", access=10), Port("p2", access=10), Port("p3", access=10)])
    switch.set_entry(10, B, "p2")
    switch.set_entry(10, C, BLACKHOLE)
    assert switch.receive("p1", frame(C, A)).drop == "blackhole"
    switch.set_port(Port("p2", access=20))
    assert switch.receive("p1", frame(B, A)).drop == "vlan_not_allowed"
    switch.set_port(Port("p2", access=10, enabled=False))
    assert switch.receive("p1", frame(B, A)).drop == "port_disabled"
    switch.remove_port("p2")
    assert switch.receive("p1", frame(B, A)).deliveries.keys() == {"p3"}


def test_alone_in_the_vlan_there_is_no_destination() -> None:
    switch = LearningSwitch([Port("p1", access=10), Port("p2", access=20)])
    assert switch.receive("p1", frame(ALL, A)).drop == "no_destination"


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def test_port_limit_refuses_new_addresses_and_moves() -> None:
    switch = three(mac_limit=2)
    for number in range(3):
        switch.receive("p1", frame(ALL, mac(number)))
    assert switch.learned_at("p1") == [(0, mac(0)), (0, mac(1))]
    switch.receive("p2", frame(ALL, mac(7)))
    switch.receive("p1", frame(ALL, mac(7)))
    assert switch.table[0, mac(7)].port == "p2"


def test_full_bridge_evicts_the_oldest_of_the_port_with_most() -> None:
    switch = LearningSwitch([Port("p1"), Port("p2")], mac_limit=5)
    for number in range(4):
        switch.now = number
        switch.receive("p1", frame(ALL, mac(number)))
    switch.receive("p2", frame(ALL, mac(10)))
    switch.receive("p1", frame(ALL, mac(0)))  # refreshed: no longer the oldest
    switch.receive("p2", frame(ALL, mac(11)))
    assert switch.learned_at("p1") == [(0, mac(0)), (0, mac(2)), (0, mac(3))]
    assert switch.learned_at("p2") == [(0, mac(10)), (0, mac(11))]


def test_static_entries_are_never_evicted() -> None:
    switch = LearningSwitch([Port("p1"), Port("p2")], mac_limit=2)
    switch.set_entry(0, mac(1), "p1")
    switch.set_entry(0, mac(2), "p1")
    switch.receive("p2", frame(ALL, mac(3)))
    assert switch.table.keys() == {(0, mac(1)), (0, mac(2))}


def test_ageing_forgets_learned_entries_only() -> None:
    switch = three()
    switch.set_entry(0, A, "p1")
    switch.receive("p2", frame(ALL, B))
    switch.now = 299
    switch.age()
    assert (0, B) in switch.table
    switch.now = 300
    switch.age()
    assert switch.table.keys() == {(0, A)}


def test_reserved_addresses() -> None:
    for text in ("0180c2000000", "0180c200000f", "01000ccccccc", "01000ccccccd", "01000cccccc7", "00e02b000004"):
        assert reserved(bytes.fromhex(text)), text
    for text in ("0180c2000010", "01000cccccc8", "01000ccccccb", "00e02b000001", "ffffffffffff"):
        assert not reserved(bytes.fromhex(text)), text
