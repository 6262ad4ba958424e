# SPDX-License-Identifier: Apache-2.0
"""The difference between what runs and what is wanted, as ordered steps. Pure: no I/O, same in, same out.

Theory of operation. Ports are matched by name. A port whose identity is unchanged gets at most a SetPort, which
disturbs no frame; an identity change (type, bridge, socket, device, queues, ...) is a ReplacePort, which drops that
port's frames for a moment; a port that is equal gets no step at all. Two ports may never hold one socket or device at
the same time, so a port that takes over what another one holds comes after the step that frees it. Ports that swap such
a thing would wait for each other: one of them is then removed first and added last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from switch.config.specs import BridgeSpec as BridgeSpec
from switch.config.specs import State as State
from switch.config.specs import StaticFlow as StaticFlow
from switch.datapath import DatapathOptions, PortSpec, VlanPolicy

POLICY_FIELDS = (
    "vlan",
    "enabled",
    "learning",
    "flood",
    "isolated",
    "mac_limit",
    "mtu",
    "rx_affinity",
)
"""The fields of PortSpec that Datapath.set_port may change while frames flow."""


class Impact(StrEnum):
    """What a step does to traffic that should go on."""

    NONE = "none"
    PORT = "port"  # frames of the named port are dropped, for a moment or for good


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} {_show(self.field, self.old)} -> {_show(self.field, self.new)}"


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """One call to the datapath. `subject` is the name of the bridge or port, `describe()` one line for a person."""

    verb: ClassVar[str] = ""
    impact: ClassVar[Impact] = Impact.NONE

    @property
    @abstractmethod
    def subject(self) -> str: ...

    @property
    def changes(self) -> tuple[Change, ...]:
        return ()

    def describe(self) -> str:
        changes = ", ".join(map(str, self.changes))
        return f"{self.verb} {self.subject}" + (f": {changes}" if changes else "")

    def as_dict(self) -> dict[str, Any]:
        """The step for `-o json` and the API."""
        return {
            "step": type(self).__name__,
            "subject": self.subject,
            "impact": str(self.impact),
            "text": self.describe(),
            "changes": [
                {"field": change.field, "old": _plain(change.old), "new": _plain(change.new)} for change in self.changes
            ],
        }


@dataclass(frozen=True, slots=True)
class AddBridge(Step):
    bridge: BridgeSpec
    verb: ClassVar[str] = "add bridge"

    @property
    def subject(self) -> str:
        return self.bridge.name


@dataclass(frozen=True, slots=True)
class SetBridge(Step):
    old: BridgeSpec
    new: BridgeSpec
    verb: ClassVar[str] = "set bridge"

    @property
    def subject(self) -> str:
        return self.new.name

    @property
    def changes(self) -> tuple[Change, ...]:
        return _differences(self.old, self.new)


@dataclass(frozen=True, slots=True)
class DelBridge(Step):
    """Its ports are gone by then."""

    name: str
    verb: ClassVar[str] = "delete bridge"

    @property
    def subject(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AddPort(Step):
    port: PortSpec
    verb: ClassVar[str] = "add port"

    @property
    def subject(self) -> str:
        return self.port.name

    def describe(self) -> str:
        where = self.port.socket or self.port.device
        return f"add port {self.port.name}: {self.port.type}{' ' + where if where else ''} in bridge {self.port.bridge}"


@dataclass(frozen=True, slots=True)
class SetPort(Step):
    """Policy fields only. Turning a port off is the one change that stops its frames, as it was told to."""

    old: PortSpec
    new: PortSpec
    verb: ClassVar[str] = "set port"

    @property
    def impact(self) -> Impact:  # type: ignore[override]
        return Impact.PORT if self.old.enabled and not self.new.enabled else Impact.NONE

    @property
    def subject(self) -> str:
        return self.new.name

    @property
    def changes(self) -> tuple[Change, ...]:
        return _differences(self.old, self.new)


@dataclass(frozen=True, slots=True)
class ReplacePort(Step):
    """Remove `old`, then add `new`: its identity changed."""

    old: PortSpec
    new: PortSpec
    verb: ClassVar[str] = "replace port"
    impact: ClassVar[Impact] = Impact.PORT

    @property
    def subject(self) -> str:
        return self.new.name

    @property
    def changes(self) -> tuple[Change, ...]:
        return _differences(self.old, self.new)


@dataclass(frozen=True, slots=True)
class DelPort(Step):
    """Every flow that points at the port goes with it."""

    name: str
    verb: ClassVar[str] = "delete port"
    impact: ClassVar[Impact] = Impact.PORT

    @property
    def subject(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SetFlow(Step):
    """Add a static flow, or point an existing one elsewhere."""

    flow: StaticFlow
    verb: ClassVar[str] = "pin"

    @property
    def subject(self) -> str:
        return _flow_text(self.flow)

    def describe(self) -> str:
        return f"pin {_flow_text(self.flow)} " + (f"to port {self.flow.port}" if self.flow.port else "as blackhole")


@dataclass(frozen=True, slots=True)
class DelFlow(Step):
    flow: StaticFlow
    verb: ClassVar[str] = "unpin"

    @property
    def subject(self) -> str:
        return _flow_text(self.flow)


@dataclass(frozen=True, slots=True)
class ListenerStep(Step):
    """About the API over TCP. No call to the datapath: switch.control carries it out."""

    address: str

    @property
    def subject(self) -> str:
        return f"control.tcp at {self.address}"


@dataclass(frozen=True, slots=True)
class AddListener(ListenerStep):
    verb: ClassVar[str] = "add listener"


@dataclass(frozen=True, slots=True)
class SetListener(ListenerStep):
    """Connections go on, except those with a token that is no more."""

    found: tuple[Change, ...]
    verb: ClassVar[str] = "set listener"

    @property
    def changes(self) -> tuple[Change, ...]:
        return self.found


@dataclass(frozen=True, slots=True)
class DelListener(ListenerStep):
    verb: ClassVar[str] = "delete listener"


def plan(running: State, wanted: State) -> list[Step]:
    """The steps from `running` to `wanted`, in an order in which each of them can succeed. Equal states: no steps."""
    old_bridges = {bridge.name: bridge for bridge in running.bridges}
    new_bridges = {bridge.name: bridge for bridge in wanted.bridges}
    steps: list[Step] = [AddBridge(bridge) for bridge in wanted.bridges if bridge.name not in old_bridges]
    steps += [
        SetBridge(old_bridges[bridge.name], bridge)
        for bridge in wanted.bridges
        if bridge.name in old_bridges and old_bridges[bridge.name] != bridge
    ]
    port_steps = _port_steps(running.ports, wanted.ports)
    lost = {step.subject for step in port_steps if isinstance(step, DelPort | ReplacePort)}
    set_flows, del_flows = _flow_steps(running, wanted, lost, new_bridges)
    steps += [*del_flows, *port_steps, *set_flows]
    steps += [DelBridge(bridge.name) for bridge in running.bridges if bridge.name not in new_bridges]
    return steps


def options_changes(running: DatapathOptions, wanted: DatapathOptions) -> list[Change]:
    """What no step can do: it needs a restart of the daemon."""
    names = {
        "hugepages": "memory.hugepages",
        "memory_bytes": "memory.size",
        "huge_page_bytes": "memory.page",
        "numa_node": "memory.numa_node",
    }
    return [
        Change(f"switch.{names.get(change.field, change.field)}", change.old, change.new)
        for change in _differences(running, wanted)
        if change.field != "pin"
    ]


def policy_only(old: PortSpec, new: PortSpec) -> bool:
    """Whether `old` can become `new` without removing the port."""
    return all(change.field in POLICY_FIELDS for change in _differences(old, new))


def _port_steps(running: Iterable[PortSpec], wanted: Iterable[PortSpec]) -> list[Step]:
    old = {port.name: port for port in running}
    new = {port.name: port for port in wanted}
    deletions: list[Step] = [DelPort(name) for name in old if name not in new]
    settings: list[Step] = []
    replacements: dict[str, ReplacePort] = {}
    for name, port in new.items():
        if name not in old or old[name] == port:
            continue
        if policy_only(old[name], port):
            settings.append(SetPort(old[name], port))
        else:
            replacements[name] = ReplacePort(old[name], port)
    additions: list[Step] = [AddPort(port) for name, port in new.items() if name not in old]
    replaced, late = _ordered(replacements)
    return [*deletions, *replaced, *late, *additions, *settings]


def _ordered(replacements: dict[str, ReplacePort]) -> tuple[list[Step], list[Step]]:
    """Replacements so that each finds its socket and device free; and the additions that a circle puts off."""
    holder = {thing: name for name, step in replacements.items() for thing in _holds(step.old)}
    steps: list[Step] = []
    late: list[Step] = []
    done: set[str] = set()
    for start in replacements:
        # Walk to what must be free first; each port holds few things, so this is a short chain, almost always empty.
        stack = [start]
        while stack:
            name = stack[-1]
            if name in done:
                stack.pop()
                continue
            step = replacements[name]
            owners = (holder.get(thing) for thing in _holds(step.new))
            waits = next((owner for owner in owners if owner not in (None, name) and owner not in done), None)
            if waits is None:
                steps.append(step)
                done.add(name)
                stack.pop()
            elif waits in stack:
                steps.append(DelPort(waits))
                late.append(AddPort(replacements[waits].new))
                done.add(waits)
            else:
                stack.append(waits)
    return steps, late


def _holds(port: PortSpec) -> Iterator[tuple[str, str]]:
    if port.socket:
        yield ("socket", port.socket)
    if port.device:
        yield ("device", port.device)


def _flow_steps(
    running: State, wanted: State, lost: set[str], bridges: Mapping[str, BridgeSpec]
) -> tuple[list[Step], list[Step]]:
    """Flows to set after, and to delete before, the port steps. Flows of `lost` ports vanish with the port."""
    old = {(flow.bridge, flow.vlan, flow.mac): flow for flow in running.flows}
    new = {(flow.bridge, flow.vlan, flow.mac): flow for flow in wanted.flows}
    sets: list[Step] = [SetFlow(flow) for key, flow in new.items() if old.get(key) != flow or flow.port in lost]
    deletions: list[Step] = [
        DelFlow(flow)
        for key, flow in old.items()
        if key not in new and flow.port not in lost and flow.bridge in bridges
    ]
    return sets, deletions


def _differences(old: Any, new: Any) -> tuple[Change, ...]:
    pairs = ((field.name, getattr(old, field.name), getattr(new, field.name)) for field in fields(old))
    return tuple(Change(name, before, after) for name, before, after in pairs if before != after)


def _flow_text(flow: StaticFlow) -> str:
    vlan = f" vlan {flow.vlan}" if flow.vlan else ""
    return f"{flow.mac.to_bytes(6, 'big').hex(':')}{vlan} in bridge {flow.bridge}"


def _show(field: str, value: Any) -> str:
    if isinstance(value, VlanPolicy):
        if value.access is not None:
            return f"access {value.access}"
        trunk = "all" if value.trunk is None else ",".join(map(str, value.trunk)) or "none"
        return f"trunk {trunk}" + (f" native {value.native}" if value.native else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if field == "mac" and isinstance(value, int):
        return value.to_bytes(6, "big").hex(":") if value else "none"
    if field == "socket_mode" and isinstance(value, int):
        return f"{value:04o}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, VlanPolicy):
        return {"access": value.access, "trunk": value.trunk and list(value.trunk), "native": value.native}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
