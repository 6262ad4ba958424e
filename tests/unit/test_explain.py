# SPDX-License-Identifier: Apache-2.0
"""What follows the verdict of the datapath: who would lose the frame, and who does not get it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from switch.datapath import PortSpec, PortStatus, VlanPolicy
from switch.explain import consequences

FRAME = bytes(60)
ADMITTED = ["port vm1 is enabled", "tag: none", "VLAN: classified to 0 (untagged)"]
TAGGED = ["port vm1 is enabled", "tag: 802.1Q", "VLAN: classified to 10"]
FLOOD = [*ADMITTED, "destination: unknown in VLAN 0"]

VM1, VM2, VM3 = (PortSpec(name, "vhostuser", "br0") for name in ("vm1", "vm2", "vm3"))
ELSEWHERE = PortSpec("other", "tap", "br1")


def port_status(name: str, up: bool) -> PortStatus:
    return PortStatus(name, "vhostuser", "br0", up, "running" if up else "waiting_for_peer", "", {}, {}, ())


@pytest.mark.parametrize(
    ("steps", "ports", "down", "frame", "said"),
    [
        ([*ADMITTED, "verdict: forward to port vm2 untagged"], [VM1, VM2], "", FRAME, []),
        ([*ADMITTED, "verdict: forward to port vm2 untagged"], [VM1, VM2], "vm2", FRAME,
         ["but port vm2 is not up (waiting_for_peer): it loses the frame there (link_down)"]),
        ([*ADMITTED, "verdict: forward to port vm2 as it is"], [VM1, replace(VM2, mtu=500)], "", bytes(515),
         ["but port vm2 has mtu 500 and this is 501 bytes: lost there (mtu_exceeded)"]),
        ([*ADMITTED, "verdict: forward to port vm2 as it is"], [VM1, replace(VM2, mtu=500)], "", bytes(514), []),
        ([*TAGGED, "verdict: forward to port vm2 tagged 10"], [VM1, replace(VM2, mtu=500)], "", bytes(518), []),
        ([*FLOOD, "verdict: flood to port vm2 untagged, port vm3 untagged"], [VM1, VM2, VM3, ELSEWHERE], "vm3", FRAME,
         ["but port vm3 is not up (waiting_for_peer): it loses the frame there (link_down)"]),
        ([*FLOOD, "verdict: flood to port vm2 untagged"], [VM1, VM2, replace(VM3, vlan=VlanPolicy(access=10))], "",
         FRAME, ["not sent there: port vm3 does not carry VLAN 0"]),
        ([*FLOOD, "verdict: flood to port vm2 untagged"], [VM1, VM2, replace(VM3, flood=False)], "", FRAME,
         ["not sent there: port vm3 has flood: false"]),
        ([*FLOOD, "verdict: drop (no_destination)"],
         [replace(VM1, isolated=True), replace(VM2, isolated=True), replace(VM3, enabled=False)], "", FRAME,
         ["not sent there: port vm2 is isolated, as vm1 is", "not sent there: port vm3 is disabled"]),
        ([*ADMITTED, "destination: at port vm2 (static)", "verdict: drop (vlan_not_allowed)"],
         [VM1, replace(VM2, vlan=VlanPolicy(access=10))], "", FRAME, ["because port vm2 does not carry VLAN 0"]),
        ([*ADMITTED, "destination: at port vm1 (learned)", "verdict: drop (hairpin)"], [VM1, VM2], "", FRAME, []),
        (["port vm1 is enabled", "tag: none", "VLAN: the trunk does not carry this VID",
          "verdict: drop (vlan_not_allowed)"], [VM1, VM2], "", FRAME, []),
        (["frame: 2 bytes, an Ethernet header has 14", "verdict: drop (frame_too_short)"], [VM1], "", bytes(2), []),
    ],
    ids=["fine", "down", "too long", "just fits", "tag does not count", "flood, one down", "VLAN", "flood: false",
         "nobody", "destination's VLAN", "hairpin", "not admitted", "too short"],
)  # fmt: skip
def test_what_follows_the_verdict(
    steps: list[str], ports: list[PortSpec], down: str, frame: bytes, said: list[str]
) -> None:
    status = {port.name: port_status(port.name, port.name != down) for port in ports}
    assert consequences("vm1", frame, steps, {port.name: port for port in ports}, status) == said


def test_hundreds_of_ports_fit_a_screen() -> None:
    ports = {port.name: port for port in [VM1, *(replace(VM2, name=f"p{i}", enabled=False) for i in range(300))]}
    notes = consequences("vm1", FRAME, [*FLOOD, "verdict: drop (no_destination)"], ports, {})
    assert len(notes) == 13
    assert notes[-1] == "... and 288 other ports do not get it"
