# SPDX-License-Identifier: Apache-2.0
"""Carries out plan steps on the datapath: all of them, or none.

Theory of operation. The reconciler keeps the State that runs: it changes with each call to the datapath that succeeded,
so it is right whatever happens between. When a step fails, the steps done before it are undone in reverse order and the
error says so; if undoing fails too (a socket was taken by somebody else meanwhile), that is part of the message and the
kept State says what really runs. A step that concerns one port touches no other port, on the way there and back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from switch.datapath import Datapath, PortSpec
from switch.errors import PortError, SwitchError
from switch.plan import (
    AddBridge,
    AddPort,
    BridgeSpec,
    DelBridge,
    DelFlow,
    DelPort,
    ReplacePort,
    SetBridge,
    SetFlow,
    SetPort,
    State,
    StaticFlow,
    Step,
)

log = logging.getLogger("switch.reconcile")

FlowKey = tuple[str, int, int]
Undo = tuple[str, Callable[[], None]]  # what it puts back, and how


class ApplyError(SwitchError):
    """A step failed. `cause` is the datapath's own error; `undone` whether everything before it was put back."""

    def __init__(self, step: Step, cause: SwitchError, failures: Sequence[str]) -> None:
        self.cause = cause
        self.undone = not failures
        tail = "nothing was changed" if self.undone else "putting things back failed too: " + "; ".join(failures)
        super().__init__(f"cannot {step.describe()}: {cause}; {tail}")


class PortHelper(Protocol):
    """Brings what a port needs and the datapath cannot open itself (switch.nic)."""

    def added(self, spec: PortSpec) -> None:
        """After the datapath added it. PortError: the port must go again."""

    def changed(self, spec: PortSpec) -> None: ...
    def leaving(self, name: str) -> None:
        """Before the datapath removes it."""


class Reconciler:
    """The running State, and the only code that changes it. One call at a time; any thread."""

    def __init__(self, datapath: Datapath, helper: PortHelper | None = None) -> None:
        self._datapath = datapath
        self._helper = helper
        self._bridges: dict[str, BridgeSpec] = {}
        self._ports: dict[str, PortSpec] = {}
        self._flows: dict[FlowKey, StaticFlow] = {}

    @property
    def running(self) -> State:
        return State(tuple(self._bridges.values()), tuple(self._ports.values()), tuple(self._flows.values()))

    @property
    def ports(self) -> dict[str, PortSpec]:
        return dict(self._ports)

    @property
    def bridges(self) -> dict[str, BridgeSpec]:
        return dict(self._bridges)

    def start(self, wanted: State, optional: frozenset[str] = frozenset()) -> list[str]:
        """Build everything from nothing, in one sweep that finds every failure. Raises SwitchError with all of them.

        Ports named in `optional` may fail: their reasons are returned.
        """
        failures: list[str] = []
        excused: list[str] = []
        for bridge in wanted.bridges:
            self._do(AddBridge(bridge))
        for port in wanted.ports:
            try:
                self._do(AddPort(port))
            except SwitchError as error:
                (excused if port.name in optional else failures).append(str(error))
        if not failures:
            for flow in wanted.flows:
                if flow.port and flow.port not in self._ports:
                    continue
                try:
                    self._do(SetFlow(flow))
                except SwitchError as error:
                    failures.append(str(error))
        if failures:
            count = f"{len(failures)} of {len(wanted.ports)} ports and flows" if len(failures) > 1 else "one of them"
            raise SwitchError("cannot start, " + count + " failed:\n" + "\n".join(f"  {line}" for line in failures))
        return excused

    def apply(self, steps: Sequence[Step]) -> None:
        """Carry out all steps in order, or none. A single step raises the datapath's own error, several ApplyError."""
        done: list[Undo] = []
        for step in steps:
            try:
                done += self._do(step)
            except Exception as error:
                failures = self._undo(done)
                if len(steps) == 1 and not failures:
                    raise
                cause = error if isinstance(error, SwitchError) else SwitchError(f"unforeseen: {error!r}")
                raise ApplyError(step, cause, failures) from error
            log.info("%s", step.describe())

    def forget_flow(self, key: FlowKey) -> None:
        """Somebody deleted a flow of the file by hand; it is back with the next apply."""
        self._flows.pop(key, None)

    def adopt_flow(self, flow: StaticFlow) -> None:
        """A flow that stands already belongs to the file from now on."""
        self._flows[flow.bridge, flow.vlan, flow.mac] = flow

    @staticmethod
    def _undo(done: list[Undo]) -> list[str]:
        failures = []
        for what, action in reversed(done):
            try:
                action()
            except Exception as error:
                log.error("cannot put back %s: %s", what, error)
                failures.append(f"{what}: {error}")
        return failures

    def _do(self, step: Step) -> list[Undo]:
        """Carry out one step and return how to undo it. When it raises, nothing of it stands."""
        match step:
            case AddBridge(bridge):
                self._add_bridge(bridge)
                return [(f"bridge {bridge.name}", lambda: self._del_bridge(bridge.name))]
            case SetBridge(old, new):
                self._set_bridge(new)
                return [(f"bridge {old.name}", lambda: self._set_bridge(old))]
            case DelBridge(name):
                gone = self._bridges[name]
                self._del_bridge(name)
                return [(f"bridge {name}", lambda: self._add_bridge(gone))]
            case AddPort(port):
                self._add_port(port)
                return [(f"port {port.name}", lambda: self._del_port(port.name))]
            case SetPort(old_port, new_port):
                self._set_port(new_port)
                return [(f"port {old_port.name}", lambda: self._set_port(old_port))]
            case DelPort(name):
                return self._delete(self._ports[name])
            case ReplacePort(old_port, new_port):
                back = self._delete(old_port)
                try:
                    self._add_port(new_port)
                except Exception as error:
                    if failures := self._undo(back):
                        raise PortError(
                            new_port.name, f"{error}; the old one is lost: {'; '.join(failures)}"
                        ) from error
                    raise
                return [*back, (f"port {new_port.name}", lambda: self._del_port(new_port.name))]
            case SetFlow(flow):
                before = self._flows.get((flow.bridge, flow.vlan, flow.mac))
                self._set_flow(flow)
                undo = (lambda: self._set_flow(before)) if before else (lambda: self._del_flow(flow))
                return [(step.subject, undo)]
            case DelFlow(flow):
                self._del_flow(flow)
                return [(step.subject, lambda: self._set_flow(flow))]
        raise SwitchError(f"unknown step {step!r}")

    def _delete(self, port: PortSpec) -> list[Undo]:
        """Delete a port; undoing adds it and the flows that went with it."""
        flows = [flow for flow in self._flows.values() if flow.port == port.name]
        self._del_port(port.name)
        # Undone in reverse: the port first, then its flows.
        back: list[Undo] = [(f"flow of {port.name}", partial(self._set_flow, flow)) for flow in flows]
        return [*back, (f"port {port.name}", lambda: self._add_port(port))]

    # Each of these changes the datapath first and the kept State only when that succeeded.

    def _add_bridge(self, bridge: BridgeSpec) -> None:
        self._datapath.add_bridge(bridge.name, bridge.ageing, bridge.mac_limit)
        self._bridges[bridge.name] = bridge

    def _set_bridge(self, bridge: BridgeSpec) -> None:
        self._datapath.set_bridge(bridge.name, bridge.ageing, bridge.mac_limit)
        self._bridges[bridge.name] = bridge

    def _del_bridge(self, name: str) -> None:
        self._datapath.del_bridge(name)
        del self._bridges[name]
        self._flows = {key: flow for key, flow in self._flows.items() if flow.bridge != name}

    def _add_port(self, port: PortSpec) -> None:
        self._datapath.add_port(port)
        if self._helper:
            try:
                self._helper.added(port)
            except BaseException:
                self._datapath.del_port(port.name)
                raise
        self._ports[port.name] = port

    def _set_port(self, port: PortSpec) -> None:
        self._datapath.set_port(port)
        if self._helper:
            self._helper.changed(port)
        self._ports[port.name] = port

    def _del_port(self, name: str) -> None:
        if self._helper and name in self._ports:
            self._helper.leaving(name)
        self._datapath.del_port(name)
        del self._ports[name]
        self._flows = {key: flow for key, flow in self._flows.items() if flow.port != name}

    def _set_flow(self, flow: StaticFlow) -> None:
        self._datapath.fdb_set(flow.bridge, flow.vlan, flow.mac, flow.port, "static")
        self._flows[flow.bridge, flow.vlan, flow.mac] = flow

    def _del_flow(self, flow: StaticFlow) -> None:
        self._datapath.fdb_del(flow.bridge, flow.vlan, flow.mac)
        self._flows.pop((flow.bridge, flow.vlan, flow.mac), None)
