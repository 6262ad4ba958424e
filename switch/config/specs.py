# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks for beside ports (switch.datapath.PortSpec), as plain values that plan compares."""

from __future__ import annotations

from dataclasses import dataclass

from switch.datapath import PortSpec


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A bridge as it should be."""

    name: str
    ageing: int = 300  # seconds; 0: never
    mac_limit: int = 65536


@dataclass(frozen=True, slots=True)
class StaticFlow:
    """A MAC address pinned to a port; port "" drops frames to it."""

    bridge: str
    vlan: int
    mac: int
    port: str


@dataclass(frozen=True, slots=True)
class State:
    """Everything that steps can change. Names are unique; flows are those that the configuration owns."""

    bridges: tuple[BridgeSpec, ...] = ()
    ports: tuple[PortSpec, ...] = ()
    flows: tuple[StaticFlow, ...] = ()
