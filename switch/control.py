# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a running switch: the daemon's commands, whoever gives them (API, signals, timers).

Theory of operation. Everything here runs on the one event loop. Changes take a lock, so that they never overlap, and
run their datapath calls in a thread, so that the loop goes on. Each change is a plan from the running State to a wanted
one.

A configuration file names ports; people and tools add others beside it. Applying a file makes every port it names be as
the file says, removes the ports that an earlier file named and this one does not, and leaves alone what was added at
run time, unless `exact` is asked for. What differs from the daemon's own file is kept in the state file for the next
start.

Why so long: every command takes the same lock and works on the same State.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from switch.config import Config, Machine, config_hash, dump_config, parse_config, port_from_request, port_from_spec
from switch.config.models import TcpSection, port_spec, untagged_vlan
from switch.config.values import format_mac
from switch.datapath import Datapath, DatapathOptions, Event, PortSpec
from switch.errors import FdbError, PortError, SwitchError
from switch.events import EventLog, Refusals, actor
from switch.learning import Damping, Flow, Learning, check_flow
from switch.merge import (
    Before,
    as_config,
    carries,
    check_pins,
    check_shared,
    check_workers,
    fits,
    merge,
    moved,
    section_changes,
    with_flows,
)
from switch.metrics import ApiFacts, ControlFacts
from switch.plan import (
    AddPort,
    Change,
    DelFlow,
    DelPort,
    ReplacePort,
    SetFlow,
    SetPort,
    State,
    StaticFlow,
    Step,
    options_changes,
    plan,
    policy_only,
)
from switch.rates import Rates
from switch.reconcile import PortHelper, Reconciler
from switch.state import SavedState, StateFile, difference, overlay_bridges, overlay_ports
from switch.watch import stuck_text

log = logging.getLogger("switch.control")


class Missing(SwitchError):
    """What was named does not exist."""


class Exists(SwitchError):
    """What was to be added exists already, and differs."""


@dataclass(frozen=True, slots=True)
class ListenerChange:
    """What is ready to change of the API over TCP."""

    steps: list[Step]
    commit: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to `plan`: steps, what needs a restart, and what is kept although the file does not name it."""

    steps: list[Step]
    restart: list[Change]
    kept: list[str]


class Listener(Protocol):
    """The API over TCP (switch.api.tcp): a change that can fail, and one that cannot."""

    async def prepare(self, section: TcpSection | None) -> Any: ...
    def step(self, prepared: Any) -> Step | None: ...
    def commit(self, prepared: Any) -> None: ...
    def discard(self, prepared: Any) -> None: ...
    async def demand(self, section: TcpSection | None) -> Step | None: ...
    def warnings(self) -> list[str]: ...
    def facts(self) -> ApiFacts | None: ...


class Control:
    """See the head of this file."""

    def __init__(
        self,
        datapath: Datapath,
        config: Config,
        path: Path,
        *,
        machine: Machine | None = None,
        state_file: StateFile | None = None,
        options: DatapathOptions | None = None,
        helper: PortHelper | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.datapath = datapath
        self._listener = listener
        self.config = config
        self.path = path
        self.machine = machine or Machine.here()
        self.options = options or config.datapath_options(self.machine)
        self.events = EventLog()
        self._refusals = Refusals()
        self.learning = Learning(datapath, _damping(config), emit=lambda event: self.events.append([event]))
        self.reconciler = Reconciler(datapath, helper)
        self.rates = Rates()
        self.started = time.time()
        self.starts = 1
        self.apply_success = True
        self.apply_time = 0.0
        self.pending_restart: list[Change] = []
        self._state_file = state_file
        self.stuck: Callable[[], Mapping[int, int]] = dict  # worker -> seconds without a round; the daemon looks
        self._save_failed = ""  # why the state file could not be written last
        self.changed = asyncio.Event()  # something that a restart must not forget; the saver clears it
        self._base = config.state(self.machine)  # what the daemon's own file says
        self._origin: dict[str, str] = {}  # port -> "file" or "runtime"
        self._started_with = config  # what a restart would be needed to change
        self._before: Before | None = None
        self._rollback: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._saving = asyncio.Lock()  # one writer of the state file; taken before _lock

    # ---- life ----

    def start(self, saved: SavedState | None = None) -> None:
        """Build what the file says, with what was changed at run time before. Raises SwitchError when the file's part
        fails; of what is restored only what works comes back."""
        saved = saved or SavedState()
        self.starts = saved.starts + 1
        base = {port.name: port for port in self._base.ports}
        bridges, bridge_notes = overlay_bridges({bridge.name: bridge for bridge in self._base.bridges}, saved.bridges)
        ports, notes = overlay_ports(base, saved.ports)
        for note in [*bridge_notes, *notes]:
            log.warning("%s", note)
        restored = {name for name, port in ports.items() if base.get(name) != port}
        flows = tuple(flow for flow in self._base.flows if fits(flow, ports))
        if lost := len(self._base.flows) - len(flows):
            log.warning("%d static addresses of the file do not fit what was changed at run time: left out", lost)
        wanted = State(tuple(bridges.values()), tuple(ports.values()), flows)
        for reason in self.reconciler.start(wanted, frozenset(restored)):
            log.warning("not restored: %s", reason)
        for name in sorted(restored & base.keys() - self.reconciler.ports.keys()):
            log.warning("port %s: trying as the file has it", name)
            self.reconciler.apply([AddPort(base[name])])
        self._origin = {name: "file" if name in base else "runtime" for name in self.reconciler.ports}
        self.learning.restore_flows(saved.flows)
        for flow in self.learning.flows:
            self.reconciler.forget_flow(flow.key)  # what a person pinned stands, not what the file says of it
        self._drop_misplaced()
        ageing = {bridge.name: bridge.ageing for bridge in self.reconciler.running.bridges}
        away = max(0.0, time.time() - saved.saved)
        if count := self.learning.restore_learned(saved.learned, away, ageing):
            log.info("restored %d of %d learned flows", count, sum(len(group.macs) // 6 for group in saved.learned))
        self.apply_time = time.time()

    def tick(self) -> None:
        """Once a second."""
        self.learning.tick()

    def sample(self) -> None:
        """Every few seconds: remember the counters, so that `show` has rates."""
        self.rates.add(self.datapath.stats())

    def drain(self, most: int = 1024) -> int:
        """Take waiting events from the datapath; returns how many."""
        drained = self.datapath.drain_events(most)
        events = self._refusals.thin(drained)
        self.events.append(events)
        self.learning.observe(events)
        for event in events:
            if event.kind.startswith("port_"):
                log.info(
                    "port %s: %s%s", event.port, event.kind.removeprefix("port_"), event.detail and f": {event.detail}"
                )
        return len(drained)

    def facts(self) -> ControlFacts:
        """For metrics. Called from the scrape's thread: reads references only."""
        return ControlFacts(
            specs=list(self.reconciler.ports.values()),
            start_time=self.started,
            restarts=self.starts - 1,
            apply_success=self.apply_success,
            apply_time=self.apply_time,
            config_hash=config_hash(self.config),
            api=self._listener.facts() if self._listener else None,
            stuck=self.stuck(),
        )

    # ---- persistence ----

    def snapshot(self) -> SavedState:
        running = self.reconciler.running
        base = self._base
        pinned = [Flow(flow.bridge, flow.vlan, flow.mac, flow.port) for flow in running.flows if flow not in base.flows]
        learned = [group for bridge in running.bridges for group in self.datapath.fdb_learned(bridge.name)]
        return SavedState(
            saved=time.time(),
            starts=self.starts,
            ports=difference({port.name: port for port in base.ports}, {port.name: port for port in running.ports}),
            bridges=difference({bridge.name: bridge for bridge in base.bridges}, self.reconciler.bridges),
            flows=[*self.learning.flows, *pinned],
            learned=learned,
        )

    async def save(self, *, force: bool = False) -> None:
        """Write the state file if something changed. A disk that refuses is logged once, not raised.

        Changes wait while the state is collected, not while a large one is written.
        """
        if self._state_file is None:
            return
        async with self._saving:
            try:
                async with self._lock:
                    state = await asyncio.to_thread(self.snapshot)
                await asyncio.to_thread(self._state_file.save, state, force=force)
                if self._save_failed:
                    log.info("the state is saved again to %s", self._state_file.path)
                self._save_failed = ""
            except OSError as error:
                said = self._save_failed
                why = f"cannot save state to {self._state_file.path}: {error.strerror or error}"
                self._save_failed = f"{why}; a restart would forget what was changed at run time"
                if not said:
                    log.warning("%s", self._save_failed)

    def warnings(self) -> list[str]:
        """Sentences that a person should read."""
        stuck = [stuck_text(worker, seconds) for worker, seconds in self.stuck().items()]
        remote = self._listener.warnings() if self._listener else []
        return [*stuck, *self.datapath.warnings(), *remote, *filter(None, [self._save_failed])]

    def news(self, kind: str, detail: str) -> None:
        """What happened beside all commands, for those who read events: to a worker, to certificate files."""
        self._note(kind, detail=detail)

    # ---- ports ----

    def spec(self, name: str) -> PortSpec:
        spec = self.reconciler.ports.get(name)
        if spec is None:
            known = ", ".join(sorted(self.reconciler.ports)[:20]) or "none"
            raise Missing(f"there is no port {name}; ports are: {known}")
        return spec

    def origin(self, name: str) -> str:
        """file, or runtime for a port that was added beside it."""
        return self._origin.get(name, "runtime")

    async def add_port(self, request: Mapping[str, Any], *, exist_ok: bool = False) -> bool:
        """Add a port described by the keys of the file. Returns False when it existed just so (`exist_ok`)."""
        section = port_from_request(request, machine=self.machine)
        async with self._lock:
            spec = port_spec(section, self._bridge_of(section.bridge), self.machine)
            check_workers(spec, self.options.workers)
            old = self.reconciler.ports.get(spec.name)
            if old is not None:
                if exist_ok and old == spec:
                    return False
                differs = ", ".join(map(str, ReplacePort(old, spec).changes)) or "same; --exist-ok accepts it"
                raise Exists(f"port {spec.name} exists already ({differs}); change it with set-port")
            self._check_free(spec)
            running = self.reconciler.running
            flows = [StaticFlow(spec.bridge, untagged_vlan(section.vlan), mac, spec.name) for mac in section.macs]
            wanted = replace(running, ports=(*running.ports, spec), flows=with_flows(running.flows, flows))
            await self._carry_out(plan(running, wanted))
            self._origin[spec.name] = "runtime"
            self._came_or_went(spec.name)
        return True

    async def set_port(self, name: str, request: Mapping[str, Any]) -> list[Step]:
        """Change the given keys of a port; null puts one back to its default. Returns what was done."""
        if "name" in request and request["name"] != name:
            raise PortError(name, "a port cannot be renamed; delete it and add another")
        async with self._lock:
            old = self.spec(name)
            section = port_from_request(request, port_from_spec(old), self.machine)
            spec = port_spec(section, self._bridge_of(section.bridge), self.machine)
            check_workers(spec, self.options.workers)
            if not policy_only(old, spec):
                self._check_free(spec)
            running = self.reconciler.running
            others = [flow for flow in running.flows if flow.port != name]
            by_hand: list[tuple[Flow, Flow]] = []
            if "macs" in request:
                own = [StaticFlow(spec.bridge, untagged_vlan(section.vlan), mac, name) for mac in section.macs]
            else:  # its addresses move with it: they are in its bridge, and in its VLAN if they were
                own = [moved(flow, old, spec) for flow in running.flows if flow.port == name]
                pins = [flow for flow in self.learning.flows if flow.port == name and flow.owner == "static"]
                after = [moved(StaticFlow(*flow.key, name), old, spec) for flow in pins]
                check_pins(spec, [*own, *after])
                by_hand = [
                    (flow, Flow(new.bridge, new.vlan, new.mac, name)) for flow, new in zip(pins, after, strict=True)
                ]
            flows = with_flows(others, own)
            ports = tuple(spec if port.name == name else port for port in running.ports)
            steps = plan(running, replace(running, ports=ports, flows=flows))
            with self.learning.moving([(flow, new) for flow, new in by_hand if flow != new]):
                await self._carry_out(steps)
            return steps

    async def del_port(self, name: str, *, missing_ok: bool = False) -> bool:
        async with self._lock:
            if missing_ok and name not in self.reconciler.ports:
                return False
            self.spec(name)
            await self._carry_out([DelPort(name)])
            self._origin.pop(name, None)
            self._came_or_went(name)
        return True

    def _came_or_went(self, name: str) -> None:
        if self._before:
            self._before.since.add(name)

    def _bridge_of(self, name: str | None) -> str:
        bridges = list(self.reconciler.bridges)
        if name is None and len(bridges) == 1:
            return bridges[0]
        if name is None:
            raise SwitchError(f"name a bridge: there are {', '.join(bridges)}")
        if name not in bridges:
            raise Missing(f"there is no bridge {name}; bridges are: {', '.join(bridges)}")
        return name

    def _check_free(self, spec: PortSpec) -> None:
        """Refuse what two ports, or a port and the control socket, cannot share."""
        if spec.socket and spec.socket == self._started_with.control.socket:
            raise PortError(spec.name, f"{spec.socket} is the control socket; choose another path")
        check_shared([port for port in self.reconciler.ports.values() if port.name != spec.name], [spec])

    def _drop_misplaced(self) -> None:
        """Forget addresses that somebody pinned by hand, where a file put their port elsewhere since."""
        ports = self.reconciler.ports
        for flow in self.learning.flows:
            if flow.owner == "static" and not fits(StaticFlow(*flow.key, flow.port), ports):
                self.learning.delete(*flow.key)
                detail = f"address not pinned any more: port {flow.port} does not carry its VLAN"
                log.warning("%s in VLAN %d: %s", format_mac(flow.mac), flow.vlan, detail)
                self._note(
                    "config_changed", bridge=flow.bridge, port=flow.port, vlan=flow.vlan, mac=flow.mac, detail=detail
                )

    async def _carry_out(self, steps: Sequence[Step]) -> None:
        """Apply steps in a thread, let learning know which ports came and went, and note what was done."""
        work = asyncio.ensure_future(asyncio.to_thread(self.reconciler.apply, steps))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            # The daemon stops: the thread cannot be called back, and nobody else may change anything before it is done.
            await asyncio.wait({work})
            raise
        except SwitchError as error:
            log.warning("refused: %s", error)
            self._note("config_refused", detail=str(error))
            raise
        finally:
            self._settle(steps)
            self.changed.set()
        for step in steps:
            if isinstance(step, AddPort | ReplacePort | SetPort | DelPort):
                self._note("config_changed", port=step.subject, detail=step.describe())
            elif not isinstance(step, SetFlow | DelFlow):
                self._note("config_changed", detail=step.describe())
        if pins := sum(isinstance(step, SetFlow | DelFlow) for step in steps):
            self._note("config_changed", detail=f"{pins} static addresses set or removed")

    def _note(self, kind: str, *, bridge: str = "", port: str = "", vlan: int = 0, mac: int = 0, detail: str) -> None:
        """A line for `swctl events`: what changed lately, and who did it if that came by TCP."""
        if who := actor.get():
            detail = f"{detail}, by {who}"
        self.events.append([Event(time.time(), kind, bridge=bridge, port=port, vlan=vlan, mac=mac, detail=detail)])

    def _settle(self, steps: Sequence[Step]) -> None:
        running = self.reconciler.ports
        pinned = set(self.reconciler.running.flows)
        for step in steps:  # first, or it would be set again where somebody else wants it now
            if isinstance(step, SetFlow) and step.flow in pinned:
                self.learning.forget(step.flow.bridge, step.flow.vlan, step.flow.mac)
        for step in steps:
            if isinstance(step, AddPort | ReplacePort | DelPort):
                if step.subject in running:
                    self.learning.port_added(step.subject)
                else:
                    self.learning.port_deleted(step.subject)
        self._drop_misplaced()
        for bridge in {key[0] for key in self.learning.held} | {flow.bridge for flow in self.learning.flows}:
            if bridge not in self.reconciler.bridges:
                self.learning.bridge_deleted(bridge)

    # ---- flows ----

    # Under the lock: a thread that applies a file meanwhile goes over the same flows.

    async def add_flow(self, flow: Flow) -> None:
        async with self._lock:
            self._known_bridge(flow.bridge)
            check_flow(flow)
            if flow.port:
                spec = self.spec(flow.port)
                if spec.bridge != flow.bridge:
                    raise Missing(f"port {flow.port} is in bridge {spec.bridge}, not in {flow.bridge}")
                if flow.owner == "static" and not carries(spec, flow.vlan):
                    untagged = spec.vlan.access or spec.vlan.native
                    hint = f"; its untagged frames are in VLAN {untagged}" if untagged and not flow.vlan else ""
                    raise FdbError(
                        f"cannot pin {format_mac(flow.mac)}: port {flow.port} does not carry VLAN {flow.vlan}{hint}"
                    )
            self.learning.add(flow)
            self.reconciler.forget_flow(flow.key)  # what the file says of it is back with the next apply
            self.changed.set()
            what = f"{flow.owner} address" if flow.port else "frames to this address are dropped"
            self._note("config_changed", bridge=flow.bridge, port=flow.port, vlan=flow.vlan, mac=flow.mac, detail=what)

    async def delete_flow(self, bridge: str, vlan: int, mac: int) -> bool:
        async with self._lock:
            self._known_bridge(bridge)
            self.reconciler.forget_flow((bridge, vlan, mac))
            gone = self.learning.delete(bridge, vlan, mac)
            if gone:
                self.changed.set()
                self._note("config_changed", bridge=bridge, vlan=vlan, mac=mac, detail="address deleted by hand")
            return gone

    async def flush(self, bridge: str | None, port: str | None, vlan: int | None, owner: str | None) -> int:
        async with self._lock:
            if port is not None:
                bridge = self.spec(port).bridge if bridge is None else bridge
            bridges = [self._known_bridge(bridge)] if bridge else list(self.reconciler.bridges)
            count = sum(self.learning.flush(name, port, vlan, owner) for name in bridges)
            if owner == "static":
                for flow in self.reconciler.running.flows:
                    if flow.bridge in bridges and port in (None, flow.port) and vlan in (None, flow.vlan):
                        self.reconciler.forget_flow((flow.bridge, flow.vlan, flow.mac))
            self.changed.set()
            where = f"in bridge {', '.join(bridges)}" + (f", VLAN {vlan}" if vlan is not None else "")
            self._note("config_changed", port=port or "", detail=f"{count} {owner or 'learned and held'} addresses "
                       f"flushed {where}")  # fmt: skip
            return count

    def only_bridge(self, bridge: str | None) -> str:
        """`bridge`, or the only one there is."""
        return self._known_bridge(bridge) if bridge else self._bridge_of(None)

    def _known_bridge(self, bridge: str) -> str:
        return self._bridge_of(bridge)

    # ---- configuration ----

    def parse(self, text: str, path: str) -> Config:
        """A file sent by a client: relative paths start at its directory."""
        name = Path(path)
        return parse_config(text, path, name.parent if name.is_absolute() else None, self.machine)

    async def preview(self, config: Config, *, exact: bool = False) -> Planned:
        """What `apply` would do, the API over TCP included. ConfigError or SwitchError when it would be refused."""
        async with self._lock:
            planned = self.plan(config, exact=exact)
            async with self._prepared(config) as change:
                return replace(planned, steps=[*planned.steps, *change.steps])

    @contextlib.asynccontextmanager
    async def _prepared(self, config: Config) -> AsyncIterator[ListenerChange]:
        """What would change of the API over TCP: tried, and done when `commit` is called within."""
        if self._listener is None:
            yield ListenerChange([], lambda: None)
            return
        prepared = await self._listener.prepare(config.control.tcp)
        change = ListenerChange([], lambda: None)
        done = False

        def commit() -> None:
            nonlocal done
            done = True
            assert self._listener is not None
            self._listener.commit(prepared)

        step = self._listener.step(prepared)
        try:
            yield replace(change, steps=[step] if step else [], commit=commit)
        finally:
            if not done:
                self._listener.discard(prepared)

    def plan(self, config: Config, *, exact: bool = False) -> Planned:
        """The part of it that concerns the datapath."""
        runtime = frozenset() if exact else {name for name, origin in self._origin.items() if origin == "runtime"}
        wanted, kept = merge(self.reconciler.running, config.state(self.machine), runtime)
        running = self.reconciler.running
        running = replace(running, flows=with_flows(running.flows, self._pinned_as(wanted)))
        return Planned(plan(running, wanted), self._restart_changes(config), kept)

    def _pinned_as(self, wanted: State) -> list[StaticFlow]:
        """Addresses that were pinned by hand and are just so in `wanted`: nothing is to be done for them."""
        there = set(wanted.flows)
        return [flow for flow in self._by_hand() if flow in there]

    def _by_hand(self) -> list[StaticFlow]:
        return [StaticFlow(*flow.key, flow.port) for flow in self.learning.flows if flow.owner == "static"]

    def _restart_changes(self, config: Config) -> list[Change]:
        return [
            *options_changes(self.options, config.datapath_options(self.machine)),
            *section_changes(self._started_with, config),
        ]

    async def apply(
        self, config: Config, *, path: Path | None = None, exact: bool = False, confirm: float = 0.0
    ) -> Planned:
        """Make the running switch be as the file says. All or nothing; sets the metrics either way. With `confirm`
        seconds it is undone by itself unless confirmed in time."""
        async with self._lock:
            planned = await self._apply(config, path, exact, confirm)
        await self.save()
        return planned

    async def _apply(self, config: Config, path: Path | None, exact: bool, confirm: float) -> Planned:
        """Under the lock."""
        waits = self._before if self._before and self._before.deadline else None
        async with contextlib.AsyncExitStack() as stack:
            try:
                planned = self.plan(config, exact=exact)
                change = await stack.enter_async_context(self._prepared(config))
                if waits and (planned.steps or change.steps) and not confirm:
                    raise SwitchError(
                        "the configuration applied before still waits to be confirmed: `swctl confirm` or "
                        "`swctl rollback` first, or apply this one with --confirm as well"
                    )
            except SwitchError as error:
                self.refused(error)
                raise
            before = waits or Before(self.reconciler.running, self.config, dict(self._origin))
            try:
                await self._carry_out(planned.steps)
            except SwitchError:
                self.refused()  # it is noted already
                raise
            change.commit()
        for step in change.steps:
            self._note("config_changed", detail=step.describe())
        for flow in self._pinned_as(config.state(self.machine)):
            before.state = replace(before.state, flows=with_flows(before.state.flows, [flow]))  # rollback keeps it
            self.reconciler.adopt_flow(flow)
            self.learning.forget(flow.bridge, flow.vlan, flow.mac)
        planned = replace(planned, steps=[*planned.steps, *change.steps])
        self._applied(config, planned)
        # The path of a file on another machine, as the API over TCP has it, is not absolute.
        if path is not None and path.is_absolute() and _same_file(path, self.path):
            self._base = config.state(self.machine)
        if planned.steps or confirm:  # otherwise what rollback returns to stays what it was
            self._cancel_rollback()
            self._before = before
            name = str(path or "a configuration")
            self._note("config_applied", detail=f"{name}: {len(planned.steps)} changes")
        if confirm:
            before.deadline = time.time() + confirm
            self._rollback = asyncio.create_task(self._expire(before, confirm))
        return planned

    def _applied(self, config: Config, planned: Planned) -> None:
        named = {port.name for port in config.ports}
        self._origin = {
            name: "file" if name in named else self._origin.get(name, "runtime") for name in self.reconciler.ports
        }
        self.config = config
        self.pending_restart = planned.restart
        self.learning.set_damping(_damping(config))
        self.apply_success = True
        self.apply_time = time.time()

    async def reload(self, config: Config) -> Planned:
        """SIGHUP: the daemon's own file was read again."""
        return await self.apply(config, path=self.path)

    def refused(self, error: Exception | None = None) -> None:
        """A configuration could not even be read."""
        self.apply_success = False
        if error:
            self._note("config_refused", detail=str(error).splitlines()[0] if str(error) else repr(error))

    @property
    def confirm_deadline(self) -> float | None:
        """Until when an applied configuration waits to be confirmed; None: nothing waits."""
        return self._before.deadline if self._before and self._before.deadline else None

    def confirm(self) -> None:
        if self.confirm_deadline is None:
            raise Missing("nothing waits to be confirmed: no `apply --confirm` is pending")
        self._cancel_rollback()
        if self._before:
            self._before.deadline = 0.0

    async def rollback(self) -> list[Step]:
        """Go back to what ran before the last apply."""
        async with self._lock:
            if self._before is None:
                raise Missing("there is nothing to go back to: no configuration was applied since the start")
            steps = await self._go_back(self._before)
        await self.save()
        return steps

    async def _go_back(self, before: Before) -> list[Step]:
        """Under the lock. When it fails, it can be tried again."""
        running = self.reconciler.running
        wanted = before.wanted(running)
        steps = plan(running, wanted)
        await self._carry_out(steps)
        if self._listener and self.config.control.tcp != before.config.control.tcp:
            step = await self._listener.demand(before.config.control.tcp)  # ports must not wait for a certificate
            steps += [step] if step else []
        self._cancel_rollback()
        self._before = None
        self._origin = {
            port.name: (self._origin if port.name in before.since else before.origin).get(port.name, "runtime")
            for port in wanted.ports
        }
        self.config = before.config
        self.pending_restart = self._restart_changes(before.config)
        self.learning.set_damping(_damping(before.config))
        self.apply_success = True
        self.apply_time = time.time()
        self._note("config_rolled_back", detail=f"{len(steps)} changes")
        return steps

    async def _expire(self, before: Before, seconds: float) -> None:
        actor.set("")  # this runs on whoever applied it, who does nothing any more
        await asyncio.sleep(seconds)
        async with self._lock:
            if self._before is not before or not before.deadline:
                return  # confirmed, or gone back from, while this waited for another change to end
            self._rollback = None  # so that going back does not cancel this very task
            before.deadline = 0.0
            log.warning("the applied configuration was not confirmed in time: going back to the one before")
            try:
                await self._go_back(before)
            except SwitchError as error:
                log.error("cannot go back: %s; `swctl rollback` tries again", error)
                self.apply_success = False
        await self.save()

    def _cancel_rollback(self) -> None:
        if self._rollback:
            self._rollback.cancel()
            self._rollback = None

    def running_yaml(self) -> str:
        """What runs, as a file: what was changed at run time included."""
        return dump_config(as_config(self.config, self.reconciler.running, self._by_hand()))


def _damping(config: Config) -> dict[str, Damping]:
    return {
        bridge.name: Damping(bridge.move_damping.moves, bridge.move_damping.window, bridge.move_damping.hold)
        for bridge in config.all_bridges()
    }


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
