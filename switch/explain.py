# SPDX-License-Identifier: Apache-2.0
"""What becomes of a frame behind the verdict: the ports that would lose it, and those that do not get it. Pure.

The datapath explains the rules of switching and ends with a verdict. Whether a port that should get the frame is up,
and takes one so long, is decided later, when it is sent; and why a port is not among those that get a flood follows
from its settings. Both is what a person asks who looks for frames that do not arrive.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from switch.datapath import PortSpec, PortStatus

NAMES = 12  # in one line
ETHERNET, TAG = 14, 4  # bytes


def consequences(
    source: str, frame: bytes, steps: Sequence[str], specs: Mapping[str, PortSpec], status: Mapping[str, PortStatus]
) -> list[str]:
    """Sentences to follow the datapath's `steps` for a frame from port `source`."""
    verdict = steps[-1]
    vlan = _find(r"VLAN: classified to (\d+)", steps)
    if not vlan:
        return []  # it did not get that far
    if verdict.startswith(("verdict: forward", "verdict: flood")):
        getting = re.findall(r"port (\S+)", verdict)
        overhead = ETHERNET + (TAG if "tag: 802.1Q" in steps else 0)
        notes = [note for name in getting for note in _lost(name, len(frame) - overhead, specs, status)]
        return notes + (_left_out(source, vlan, getting, specs) if "flood" in verdict else [])
    at = _find(r"destination: at port (\S+)", steps)
    if at and at != source and at in specs:
        return [f"because {why}" for why in [_why_not(specs[source], specs[at], vlan, flooded=False)] if why]
    if verdict in ("verdict: drop (no_destination)", "verdict: drop (flood_disabled)"):
        return _left_out(source, vlan, (), specs)
    return []


def _find(pattern: str, steps: Sequence[str]) -> str:
    return next((found[1] for step in steps if (found := re.match(pattern, step))), "")


def _lost(name: str, payload: int, specs: Mapping[str, PortSpec], status: Mapping[str, PortStatus]) -> list[str]:
    notes = []
    if (now := status.get(name)) and not now.up:
        notes.append(f"but port {name} is not up ({now.stage}): it loses the frame there (link_down)")
    if (spec := specs.get(name)) and spec.mtu and payload > spec.mtu:
        notes.append(f"but port {name} has mtu {spec.mtu} and this is {payload} bytes: lost there (mtu_exceeded)")
    return notes


def _why_not(source: PortSpec, other: PortSpec, vlan: str, *, flooded: bool) -> str:
    """Why `other` does not get the frame, in the order of the rules; the VLAN is what is left."""
    if not other.enabled:
        return f"port {other.name} is disabled"
    if source.isolated and other.isolated:
        return f"port {other.name} is isolated, as {source.name} is"
    if flooded and not other.flood:
        return f"port {other.name} has flood: false"
    return f"port {other.name} does not carry VLAN {vlan}"


def _left_out(source: str, vlan: str, getting: Collection[str], specs: Mapping[str, PortSpec]) -> list[str]:
    own = specs[source]
    here = [spec for spec in specs.values() if spec.bridge == own.bridge]
    others = [spec for spec in here if spec.name != source and spec.name not in getting]
    reasons = [_why_not(own, other, vlan, flooded=True) for other in sorted(others, key=lambda spec: spec.name)]
    more = [f"... and {len(reasons) - NAMES} other ports do not get it"] if len(reasons) > NAMES else []
    return [f"not sent there: {reason}" for reason in reasons[:NAMES]] + more
