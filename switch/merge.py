# SPDX-License-Identifier: Apache-2.0
"""A configuration file beside what was changed at run time: which ports stay, and what runs written as a file. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from switch.config import Config, port_from_spec
from switch.config.models import BridgeSection, StaticSection
from switch.datapath import PortSpec
from switch.errors import ConfigError, Fault, PortError
from switch.plan import Change, State, StaticFlow

_AT_START_ONLY = (("control", ("socket", "mode", "group")), ("metrics", ("listen",)), ("switch", ("state_dir",)))


@dataclass(slots=True)
class Before:
    """What rollback returns to."""

    state: State
    config: Config
    origin: dict[str, str]
    deadline: float = 0.0  # wall clock; 0: no automatic rollback
    since: set[str] = field(default_factory=set)  # ports added or deleted by hand afterwards

    def wanted(self, running: State) -> State:
        """The state before, except that what somebody added or deleted by hand since stays so: a guest that came after
        the apply must not lose its port. PortError when both cannot stand together."""
        ports = [port for port in self.state.ports if port.name not in self.since]
        stay = [port for port in running.ports if port.name in self.since]
        check_shared(stay, ports)
        bridges = {bridge.name for bridge in self.state.bridges}
        homes = {port.bridge for port in stay} - bridges
        flows = [flow for flow in self.state.flows if flow.port not in self.since]
        return State(
            (*self.state.bridges, *(bridge for bridge in running.bridges if bridge.name in homes)),
            (*ports, *stay),
            with_flows(flows, [flow for flow in running.flows if flow.port in self.since]),
        )


def merge(running: State, wanted: State, runtime: Collection[str]) -> tuple[State, list[str]]:
    """`wanted`, and the running ports among `runtime` (names) that it does not name, with their flows; and the names of
    those. ConfigError or PortError when they cannot stand together."""
    named = {port.name for port in wanted.ports}
    kept = [port for port in running.ports if port.name in runtime and port.name not in named]
    bridges = {bridge.name for bridge in wanted.bridges}
    faults = [
        Fault(
            f"ports.{port.name}",
            f"was added at run time in bridge {port.bridge}, which this file does not have: delete the port, "
            "or apply with --exact",
        )
        for port in kept
        if port.bridge not in bridges
    ]
    if faults:
        raise ConfigError(faults)
    check_shared(kept, wanted.ports)
    names = {port.name for port in kept}
    flows = [flow for flow in running.flows if flow.port in names]
    return State(wanted.bridges, (*wanted.ports, *kept), with_flows(flows, wanted.flows)), sorted(names)


def check_shared(present: Sequence[PortSpec], coming: Sequence[PortSpec]) -> None:
    """Refuse what two ports cannot share."""
    for what in ("socket", "device"):
        holder = {getattr(port, what): port.name for port in present if getattr(port, what)}
        for spec in coming:
            if (value := getattr(spec, what)) in holder:
                raise PortError(
                    spec.name, f"the {what} {value} belongs to port {holder[value]}; each port needs its own"
                )


def with_flows(flows: Sequence[StaticFlow], more: Sequence[StaticFlow]) -> tuple[StaticFlow, ...]:
    """Both, where `more` wins."""
    merged = {(flow.bridge, flow.vlan, flow.mac): flow for flow in (*flows, *more)}
    return tuple(merged.values())


def section_changes(old: Config, new: Config) -> list[Change]:
    """What the daemon takes up only when it starts."""
    changes = []
    for section, keys in _AT_START_ONLY:
        for key in keys:
            before, after = getattr(getattr(old, section), key), getattr(getattr(new, section), key)
            if before != after:
                changes.append(Change(f"{section}.{key}", before, after))
    return changes


def as_config(config: Config, running: State, more: Sequence[StaticFlow] = ()) -> Config:
    """`config` with the bridges, ports and flows that run."""
    damping = {bridge.name: bridge.move_damping for bridge in config.all_bridges()}
    bridges = []
    for bridge in running.bridges:
        static = tuple(
            StaticSection.model_construct(
                mac=flow.mac, vlan=flow.vlan or None, port=flow.port or None, blackhole=not flow.port
            )
            for flow in with_flows(running.flows, more)
            if flow.bridge == bridge.name
        )
        changes = {"ageing": bridge.ageing, "mac_limit": bridge.mac_limit, "static": static}
        if bridge.name in damping:
            changes["move_damping"] = damping[bridge.name]
        bridges.append(BridgeSection(name=bridge.name).model_copy(update=changes))
    ports = tuple(port_from_spec(spec).model_copy(update={"bridge": spec.bridge}) for spec in running.ports)
    return config.model_copy(update={"bridges": tuple(bridges), "ports": ports})
