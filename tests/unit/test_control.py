# SPDX-License-Identifier: Apache-2.0
"""The daemon's commands: what a file, a person and a restart each may change."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from switch.config import parse_config
from switch.control import Control, Exists, Missing
from switch.datapath import Event, FdbEntry, PortSpec
from switch.errors import ConfigError, PortError, SwitchError
from switch.learning import Flow
from switch.state import SavedState, StateFile
from tests.support.daemon import MACHINE, config_text, make_control
from tests.support.memory_datapath import MemoryDatapath

MAC = 0x525400000001


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def memory(control: Control) -> MemoryDatapath:
    assert isinstance(control.datapath, MemoryDatapath)
    return control.datapath


def request(folder: Path, name: str = "vm7", **more: object) -> dict[str, object]:
    return {"name": name, "type": "vhostuser", "socket": f"{folder}/{name}.sock", **more}


def test_start_builds_what_the_file_says(folder: Path) -> None:
    control = make_control(folder)
    assert set(memory(control).specs) == {"vm1", "vm2"}
    assert control.origin("vm1") == "file"


def test_a_port_is_added_as_the_file_would_say_it(folder: Path) -> None:
    control = make_control(folder)
    assert run(control.add_port(request(folder, vlan={"access": 20}, macs=["52:54:00:00:00:07"])))
    assert memory(control).specs["vm7"].vlan.access == 20
    assert memory(control).flows["br0", 20, 0x525400000007].owner == "static"
    assert control.origin("vm7") == "runtime"


def test_exist_ok_accepts_the_same_port_and_no_other(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_port(request(folder)))
    assert not run(control.add_port(request(folder), exist_ok=True))
    with pytest.raises(Exists, match="queues 1 -> 2"):
        run(control.add_port(request(folder, queues=2), exist_ok=True))
    with pytest.raises(Exists):
        run(control.add_port(request(folder)))


@pytest.mark.parametrize("path", ["vm1.sock", "control.sock"])
def test_a_socket_that_is_taken_is_refused_with_its_owner(folder: Path, path: str) -> None:
    control = make_control(folder)
    with pytest.raises(PortError, match=r"vm1|control socket"):
        run(control.add_port({"name": "vm7", "type": "vhostuser", "socket": f"{folder}/{path}"}))
    assert "vm7" not in memory(control).specs


def test_setting_policy_keeps_the_port_and_null_is_the_default(folder: Path) -> None:
    control = make_control(folder)
    memory(control).calls.clear()
    run(control.set_port("vm1", {"isolated": True, "vlan": None}))
    spec = memory(control).specs["vm1"]
    assert (spec.isolated, spec.vlan.access) == (True, None)
    assert memory(control).calls == [("set_port", "vm1")]
    with pytest.raises(ConfigError, match="isolatd"):
        run(control.set_port("vm1", {"isolatd": True}))
    with pytest.raises(PortError, match="renamed"):
        run(control.set_port("vm1", {"name": "vm9"}))


@pytest.mark.parametrize(
    ("change", "pins"),
    [
        ({"vlan": {"trunk": [20, 99], "native": 20}}, [("br0", 20), ("br0", 99)]),
        ({"bridge": "br1"}, [("br1", 10), ("br1", 99)]),
        ({"bridge": "br1", "vlan": None}, [("br1", 0), ("br1", 99)]),
        ({"flood": False}, [("br0", 10), ("br0", 99)]),
        ({"macs": []}, []),
    ],
    ids=["VLAN", "bridge", "both", "neither", "no addresses"],
)
def test_the_addresses_of_a_port_move_with_it(
    folder: Path, change: dict[str, Any], pins: list[tuple[str, int]]
) -> None:
    bridges = "bridges: [{name: br0, static: [{mac: '52:54:00:00:00:02', vlan: 99, port: vm7}]}, {name: br1}]\n"
    port = f"  - {{name: vm7, type: vhostuser, socket: {folder}/vm7.sock, macs: ['52:54:00:00:00:01'], "
    text = config_text(folder, port + "vlan: {trunk: [10, 99], native: 10}}\n", bridges)
    control = make_control(folder, text=text.replace("type: vhostuser", "type: vhostuser, bridge: br0"))
    run(control.set_port("vm7", change))
    flows = memory(control).flows.values()
    assert sorted((flow.bridge, flow.vlan) for flow in flows if flow.port == "vm7") == pins


def test_a_flow_that_a_file_leaves_behind_is_forgotten(folder: Path) -> None:
    text = config_text(folder, extra="bridges: [{name: br0}, {name: br1}]\n")
    control = make_control(folder, text=text.replace("type: vhostuser", "type: vhostuser, bridge: br0"))
    run(control.add_flow(Flow("br0", 10, MAC, "vm1")))
    changed = control.path.read_text().replace("vhostuser, bridge: br0", "vhostuser, bridge: br1")
    run(control.apply(control.parse(changed, str(folder / "other.yaml"))))
    assert control.learning.flows == []


def test_a_port_that_is_not_there_is_missing(folder: Path) -> None:
    control = make_control(folder)
    with pytest.raises(Missing, match="vm1, vm2"):
        run(control.del_port("nobody"))
    assert not run(control.del_port("nobody", missing_ok=True))
    assert run(control.del_port("vm1"))


def test_applying_a_file_leaves_ports_of_run_time_alone(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_port(request(folder, macs=["52:54:00:00:00:07"])))
    text = config_text(folder).replace("vlan: {access: 10}", "vlan: {access: 11}").replace("vm2", "vm3")
    planned = run(control.apply(control.parse(text, str(folder / "other.yaml"))))
    assert planned.kept == ["vm7"]
    assert set(memory(control).specs) == {"vm1", "vm3", "vm7"}
    assert memory(control).specs["vm1"].vlan.access == 11
    assert ("br0", 0, 0x525400000007) in memory(control).flows
    run(control.apply(control.parse(text, str(folder / "other.yaml")), exact=True))
    assert set(memory(control).specs) == {"vm1", "vm3"}


def test_applying_the_same_file_again_does_nothing(folder: Path) -> None:
    control = make_control(folder)
    memory(control).calls.clear()
    assert run(control.apply(control.config)).steps == []
    assert memory(control).calls == []


def test_a_failed_apply_changes_nothing_and_shows(folder: Path) -> None:
    control = make_control(folder)
    before = dict(memory(control).specs)
    memory(control).refuse = {"vm8": "no memory"}
    text = config_text(folder, f"  - {{name: vm8, type: vhostuser, socket: {folder}/vm8.sock}}\n").replace(
        "access: 10", "access: 12"
    )
    with pytest.raises(SwitchError, match="no memory"):
        run(control.apply(control.parse(text, "/x/y.yaml")))
    assert memory(control).specs == before
    assert not control.facts().apply_success
    run(control.apply(control.config))
    assert control.facts().apply_success


def test_what_needs_a_restart_is_said(folder: Path) -> None:
    control = make_control(folder)
    text = config_text(folder).replace("cpu: 2", "cpu: 3").replace("control.sock", "other.sock")
    planned = control.plan(control.parse(text, "/x/y.yaml"))
    assert {change.field for change in planned.restart} == {"switch.workers", "control.socket"}
    assert planned.steps == []


def test_a_bridge_that_a_run_time_port_needs_cannot_go(folder: Path) -> None:
    bridges = "bridges: [{name: br0}, {name: br1}]\n"
    text = config_text(folder, extra=bridges).replace("type: vhostuser", "type: vhostuser, bridge: br0")
    control = make_control(folder, text=text)
    run(control.add_port(request(folder, bridge="br1")))
    with pytest.raises(ConfigError, match="added at run time in bridge br1"):
        control.plan(control.parse(config_text(folder), "/x/y.yaml"))


def test_an_unconfirmed_apply_is_undone(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        text = config_text(folder).replace("access: 10", "access: 12")
        await control.apply(control.parse(text, "/x/y.yaml"), confirm=0.05)
        deadline = asyncio.get_running_loop().time() + 10
        while not control.events.recent(kind="config_rolled_back"):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        done = [record.event.detail for record in control.events.recent(kind="config_changed")]
        assert done == ["set port vm1: vlan access 10 -> access 12", "set port vm1: vlan access 12 -> access 10"]
        assert memory(control).specs["vm1"].vlan.access == 10

    run(scenario())


def test_a_confirmed_apply_stays_and_can_be_rolled_back(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        with pytest.raises(Missing):
            control.confirm()
        with pytest.raises(Missing):
            await control.rollback()
        await control.apply(
            control.parse(config_text(folder).replace("access: 10", "access: 12"), "/x/y.yaml"), confirm=60
        )
        assert control.confirm_deadline is not None
        control.confirm()
        assert control.confirm_deadline is None
        await control.rollback()
        assert memory(control).specs["vm1"].vlan.access == 10

    run(scenario())


def test_what_came_or_went_by_hand_is_not_rolled_back(folder: Path) -> None:
    text = config_text(folder, f"  - {{name: vm8, type: vhostuser, socket: {folder}/vm8.sock}}\n")

    async def scenario() -> None:
        control = make_control(folder, text=text)
        await control.add_port(request(folder, "early"))
        await control.apply(control.parse(text.replace("access: 10", "access: 12"), "/x/y.yaml"))
        await control.add_port(request(folder, "late", macs=["52:54:00:00:00:07"]))
        await control.del_port("vm8")
        await control.del_port("early")
        await control.rollback()
        specs = memory(control).specs
        assert specs["vm1"].vlan.access == 10
        assert set(specs) == {"vm1", "vm2", "late"}
        assert control.origin("late") == "runtime"
        assert memory(control).flows["br0", 0, 0x525400000007].port == "late"

    run(scenario())


def test_a_rollback_that_fails_can_be_tried_again(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        await control.apply(control.parse(config_text(folder).replace("access: 10", "access: 12"), "/x/y.yaml"))
        memory(control).refuse = {"vm1": "busy"}
        with pytest.raises(SwitchError, match="busy"):
            await control.rollback()
        memory(control).refuse = {}
        await control.rollback()
        assert memory(control).specs["vm1"].vlan.access == 10

    run(scenario())


def test_applying_what_runs_keeps_the_way_back_and_the_timer(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        changed = control.parse(config_text(folder).replace("access: 10", "access: 12"), "/x/y.yaml")
        await control.apply(changed, confirm=60)
        assert not (await control.apply(changed)).steps
        assert control.confirm_deadline is not None
        await control.rollback()
        assert memory(control).specs["vm1"].vlan.access == 10

    run(scenario())


def test_while_one_apply_waits_another_must_wait_as_well(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        first, second = (
            control.parse(config_text(folder).replace("access: 10", f"access: {vid}"), "/x/y.yaml")
            for vid in ("12", "13")
        )
        await control.apply(first, confirm=60)
        with pytest.raises(SwitchError, match="swctl confirm"):
            await control.apply(second)
        assert memory(control).specs["vm1"].vlan.access == 12
        await control.apply(second, confirm=60)  # the way back is still to what was confirmed
        await control.rollback()
        assert memory(control).specs["vm1"].vlan.access == 10
        assert control.confirm_deadline is None

    run(scenario())


def test_a_timer_that_ends_during_another_change_undoes_only_its_own(folder: Path) -> None:
    async def scenario() -> None:
        control = make_control(folder)
        await control.apply(
            control.parse(config_text(folder).replace("access: 10", "access: 12"), "/x/y.yaml"), confirm=60
        )
        assert control._before
        async with control._lock:
            expiring = asyncio.create_task(control._expire(control._before, 0))
            await asyncio.sleep(0.01)  # the time is over, and the timer waits for us
            control.confirm()
        await expiring
        assert memory(control).specs["vm1"].vlan.access == 12

    run(scenario())


def test_a_rollback_says_again_what_needs_a_restart(folder: Path) -> None:
    control = make_control(folder)
    other = config_text(folder).replace("cpu: 2", "cpu: 3")
    run(control.apply(control.parse(other, "/x/y.yaml")))
    run(control.apply(control.parse(other.replace("access: 10", "access: 12"), "/x/y.yaml")))
    run(control.rollback())
    assert [change.field for change in control.pending_restart] == ["switch.workers"]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda control, folder: control.add_port(request(folder)), ["config_changed"]),
        (lambda control, folder: control.add_port(request(folder, "vm8")), ["config_refused"]),
        (lambda control, folder: control.add_flow(Flow("br0", 10, MAC, "vm1")), ["config_changed"]),
        (lambda control, folder: control.delete_flow("br0", 10, MAC), []),
        (lambda control, folder: control.flush("br0", None, None, None), ["config_changed"]),
        (lambda control, folder: control.apply(control.parse(
            config_text(folder).replace("access: 10", "access: 12"), "/x/y.yaml")),
         ["config_changed", "config_applied"]),
        (lambda control, folder: control.apply(control.parse(
            config_text(folder, f"  - {{name: vm8, type: vhostuser, socket: {folder}/vm8.sock}}\n"), "/x/y.yaml")),
         ["config_refused"]),
    ],
    ids=["add", "add refused", "pin", "unpin nothing", "flush", "apply", "apply refused"],
)  # fmt: skip
def test_events_tell_what_changed_and_only_that(folder: Path, change: Any, kinds: list[str]) -> None:
    control = make_control(folder)
    memory(control).refuse = {"vm8": "no memory"}
    with contextlib.suppress(SwitchError):
        run(change(control, folder))
    assert [record.event.kind for record in control.events.recent(kind="config")] == kinds


def test_a_change_holds_the_lock_until_its_thread_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()

    async def scenario() -> None:
        control = make_control(folder)
        apply = control.reconciler.apply

        def slow(steps: Any) -> None:
            entered.set()
            assert leave.wait(10)
            apply(steps)

        monkeypatch.setattr(control.reconciler, "apply", slow)
        adding = asyncio.create_task(control.add_port(request(folder)))
        await asyncio.to_thread(entered.wait, 10)
        adding.cancel()  # as the server does when the daemon stops
        await asyncio.sleep(0.01)
        assert control._lock.locked()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert "vm7" in memory(control).specs

    run(scenario())


def restarted(folder: Path, control: Control, text: str = "") -> Control:
    """The next run of the daemon: the same state file, the file of then."""
    run(control.save(force=True))
    assert control._state_file is not None
    return make_control(folder, text=text or control.path.read_text(), saved=control._state_file.load())


def test_a_restart_keeps_what_was_changed_beside_the_file(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_port(request(folder, macs=["52:54:00:00:00:07"])))
    run(control.set_port("vm1", {"isolated": True}))
    run(control.del_port("vm2"))
    run(control.add_flow(Flow("br0", 10, MAC, "vm1", "external")))
    memory(control).fdb_set("br0", 10, MAC + 1, "vm1", "learned")
    after = restarted(folder, control)
    assert set(memory(after).specs) == {"vm1", "vm7"}
    assert memory(after).specs["vm1"].isolated
    owners = {entry.mac: entry.owner for entry in memory(after).flows.values()}
    assert owners == {MAC: "external", MAC + 1: "learned", 0x525400000007: "static"}
    assert after.origin("vm7") == "runtime"
    assert after.facts().restarts == 1


def test_changes_do_not_wait_for_a_slow_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = make_control(folder)
    writing, go_on = threading.Event(), threading.Event()
    written: list[set[str]] = []

    def slow(_file: StateFile, state: SavedState, *, force: bool = False) -> bool:
        writing.set()
        assert go_on.wait(10)
        written.append(set(state.ports))
        return force

    monkeypatch.setattr(StateFile, "save", slow)

    async def scenario() -> None:
        saving = asyncio.create_task(control.save())
        await asyncio.to_thread(writing.wait, 10)
        assert await asyncio.wait_for(control.add_port(request(folder)), 5)
        again = asyncio.create_task(control.save())
        go_on.set()
        await asyncio.gather(saving, again)

    run(scenario())
    assert written == [set(), {"vm7"}]


def test_a_disk_that_refuses_is_shown_until_it_takes_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = make_control(folder)

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save", full)
        run(control.save())
    assert any("No space left" in warning and "restart would forget" in warning for warning in control.warnings())
    run(control.save())
    assert control.warnings() == memory(control).warnings()


def test_a_restart_after_the_file_was_edited_follows_the_file(folder: Path) -> None:
    control = make_control(folder)
    run(control.set_port("vm1", {"isolated": True}))
    after = restarted(folder, control, config_text(folder).replace("access: 10", "access: 13"))
    assert memory(after).specs["vm1"].vlan.access == 13
    assert not memory(after).specs["vm1"].isolated


def test_a_restored_port_that_fails_does_not_stop_the_start(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_port(request(folder)))
    run(control.save(force=True))
    assert control._state_file is not None
    datapath = MemoryDatapath()
    datapath.refuse = {"vm7": "its directory is gone"}
    after = make_control(folder, datapath, saved=control._state_file.load())
    assert set(after.reconciler.ports) == {"vm1", "vm2"}


def test_applying_another_file_survives_a_restart(folder: Path) -> None:
    control = make_control(folder)
    text = config_text(folder, f"  - {{name: vm8, type: vhostuser, socket: {folder}/vm8.sock}}\n")
    run(control.apply(control.parse(text, str(folder / "other.yaml")), path=folder / "other.yaml"))
    assert set(memory(restarted(folder, control)).specs) == {"vm1", "vm2", "vm8"}


def test_the_running_configuration_reads_back_as_what_runs(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_port(request(folder, vlan={"trunk": [10, 20], "native": 10}, macs=["52:54:00:00:00:07"])))
    run(control.add_flow(Flow("br0", 10, MAC, "vm1")))
    config = parse_config(control.running_yaml(), "running", folder, MACHINE)
    assert config.state(MACHINE).ports == control.reconciler.running.ports
    assert {flow.mac for flow in config.static_flows()} == {MAC, 0x525400000007}


def test_events_reach_learning_and_the_log(folder: Path) -> None:
    control = make_control(folder)
    memory(control).emit(
        Event(1.0, "fdb_learned", "br0", "vm1", vlan=10, mac=MAC), Event(2.0, "port_connected", port="vm1")
    )
    assert control.drain() == 2
    assert [event.kind for event in control.learning.history("br0")] == ["fdb_learned"]
    assert [record.event.kind for record in control.events.recent(port="vm1")] == ["fdb_learned", "port_connected"]


def test_refusals_do_not_wash_the_history_away(folder: Path) -> None:
    control = make_control(folder)
    memory(control).emit(Event(1.0, "fdb_learned", "br0", "vm1", vlan=10, mac=MAC))
    for second in range(100, 130):
        memory(control).emit(*[Event(float(second), "fdb_refused_owner", "br0", "vm2", "vm1", 10, MAC)] * 1000)
        while control.drain(1024) == 1024:
            pass
    kinds = [event.kind for event in control.learning.history("br0", limit=100_000)]
    assert kinds == ["fdb_learned", *["fdb_refused_owner"] * 3]


def test_flushing_by_port_finds_its_bridge_and_unknown_names_are_refused(folder: Path) -> None:
    control = make_control(folder)
    memory(control).fdb_set("br0", 10, MAC, "vm1", "learned")
    assert run(control.flush(None, "vm1", None, None)) == 1
    with pytest.raises(Missing, match="br9"):
        run(control.flush("br9", None, None, None))
    with pytest.raises(Missing, match="vm9"):
        run(control.add_flow(Flow("br0", 0, MAC, "vm9")))


def test_flows_of_a_deleted_port_do_not_come_back(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_flow(Flow("br0", 10, MAC, "vm1")))
    run(control.del_port("vm1"))
    assert control.learning.flows == []
    assert control.snapshot().flows == []


def test_a_replaced_port_keeps_its_flows(folder: Path) -> None:
    control = make_control(folder)
    run(control.add_flow(Flow("br0", 10, MAC, "vm1")))
    run(control.set_port("vm1", {"queues": 4}))
    assert memory(control).flows["br0", 10, MAC] == FdbEntry("br0", 10, MAC, "vm1", "static", 0)
    assert isinstance(memory(control).specs["vm1"], PortSpec)
