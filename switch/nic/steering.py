# SPDX-License-Identifier: Apache-2.0
"""Which frames the device gives us (`steering` of the port), as flow rules.

`all`: everything, past the kernel, which then sees nothing of this NIC. `leftovers`: what no other rule takes, the
kernel's own included. Addresses: frames to these, and to groups; the kernel's interface keeps the rest.

With several queues a rule is made per protocol as well, because one queue pair hashes one kind of header. A device that
refuses such a rule still has the general one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from switch.nic.library import Verbs

log = logging.getLogger("switch.nic")

ZERO, ONES, GROUP = "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:00:00:00:00"
GENERAL, SPECIAL = 1, 0  # priorities of rules: 0 is asked first


@dataclass(frozen=True, slots=True)
class Hashing:
    """Frames that one queue pair spreads: the header fields that it hashes, and how a rule names such frames."""

    name: str
    fields: tuple[str, ...]
    ip: str = ""
    transport: str = ""


GENERAL_HASHING = Hashing("ipv4", ("IBV_RX_HASH_SRC_IPV4", "IBV_RX_HASH_DST_IPV4"))
SPECIAL_HASHINGS = tuple(
    Hashing(
        f"{protocol.lower()}{version}",
        tuple(f"IBV_RX_HASH_{way}_IPV{version}" for way in ("SRC", "DST"))
        + tuple(f"IBV_RX_HASH_{way}_PORT_{protocol}" for way in ("SRC", "DST")),
        f"ipv{version}",
        protocol,
    )
    for version in (4, 6)
    for protocol in ("TCP", "UDP")
)


def rules(verbs: Verbs, steering: str, qp: Any, hashing: Hashing = GENERAL_HASHING) -> Iterator[Any]:
    """Flow by flow: whoever takes them must close them, before the queue pair."""
    enums, priority = verbs.enums, SPECIAL if hashing.ip else GENERAL
    if steering == "leftovers":
        if not hashing.ip:
            yield verbs.flow.Flow(qp, verbs.flow.FlowAttr(flow_type=enums.IBV_FLOW_ATTR_ALL_DEFAULT, port=1))
        return
    for mac, mask in _destinations(steering):
        try:
            yield _flow(verbs, qp, mac, mask, hashing, priority)
        except verbs.Error as error:
            if steering != "all" or hashing.ip:
                raise
            # Some devices know no rule that matches everything, but the default rule.
            log.debug("no rule for every address (%s), trying the default rule", error)
            yield verbs.flow.Flow(qp, verbs.flow.FlowAttr(flow_type=enums.IBV_FLOW_ATTR_ALL_DEFAULT, port=1))


def _destinations(steering: str) -> list[tuple[str, str]]:
    if steering == "all":
        return [(ZERO, ZERO)]
    return [(mac, ONES) for mac in steering.split(",")] + [(GROUP, GROUP)]


def _flow(verbs: Verbs, qp: Any, mac: str, mask: str, hashing: Hashing, priority: int) -> Any:
    specs = [verbs.spec.EthSpec(dst_mac=mac, dst_mac_mask=mask)]
    if hashing.ip == "ipv4":
        specs.append(verbs.spec.Ipv4ExtSpec())
    elif hashing.ip == "ipv6":
        # Said in full: its defaults are numbers, which it does not take itself.
        specs.append(verbs.spec.Ipv6Spec(dst_ip="::", dst_ip_mask="::", src_ip="::", src_ip_mask="::"))
    if hashing.transport:
        specs.append(verbs.spec.TcpUdpSpec(getattr(verbs.enums, f"IBV_FLOW_SPEC_{hashing.transport}")))
    attributes = verbs.flow.FlowAttr(
        num_of_specs=len(specs), flow_type=verbs.enums.IBV_FLOW_ATTR_NORMAL, priority=priority, port=1
    )
    for spec in specs:
        attributes.specs.append(spec)
    return verbs.flow.Flow(qp, attributes)
