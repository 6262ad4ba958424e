# SPDX-License-Identifier: Apache-2.0
"""The control plane over the real datapath: what survives a restart, what a reload disturbs, how flapping ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.testing import Guest
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port

MACS = [bytes.fromhex(f"5254000000{number:02x}") for number in range(1, 9)]
TEXTS = [mac.hex(":") for mac in MACS]


def frame(source: bytes, destination: bytes = b"\xff" * 6, number: int = 0) -> bytes:
    return destination + source + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(46)


@pytest.fixture
def pair(folder: Path) -> Iterator[tuple[Switchd, Guest, Guest]]:
    """A switch and two guests that can talk."""
    ports = [vhost_port("vm1", folder / "vm1.sock"), vhost_port("vm2", folder / "vm2.sock")]
    one, two = (Guest(port["socket"]) for port in ports)
    with Switchd(folder, ports) as switch, one, two:
        switch.wait_up("vm1", "vm2")
        yield switch, one, two


def entries(switch: Switchd, *arguments: str) -> dict[str, dict[str, Any]]:
    return {flow["mac"]: flow for flow in switch.ctl("fdb", "show", *arguments)["flows"]}


def restart(switch: Switchd, number: signal.Signals) -> None:
    assert switch.process is not None
    switch.process.signal(number)
    switch.process.wait(20.0)
    switch.start()


def test_what_was_learned_is_known_after_a_restart(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    one.send(frame(MACS[0]))
    two.expect(frame(MACS[0]))
    wait_until("learned", lambda: TEXTS[0] in entries(switch))
    restart(switch, signal.SIGTERM)
    assert entries(switch)[TEXTS[0]]["port"] == "vm1"
    assert entries(switch)[TEXTS[0]]["owner"] == "learned"
    switch.wait_up("vm1", "vm2")
    two.send(frame(MACS[1], MACS[0]))
    one.expect(frame(MACS[1], MACS[0]))
    assert switch.metrics().sum("switch_restarts_total") == 1


def test_ports_and_flows_of_run_time_survive_a_killed_daemon(folder: Path) -> None:
    with Switchd(folder, [vhost_port("vm1", folder / "vm1.sock")]) as switch:
        switch.ctl("add-port", "vhostuser", "vm7", "--socket", str(folder / "vm7.sock"), "--vlan-access", "7")
        switch.ctl("set-port", "vm1", "--mtu", "1400")
        switch.ctl("fdb", "add", TEXTS[0], "vm7", "--vlan", "7")
        state = folder / "state/control.sock.state.json"
        wait_until("the state is saved", lambda: state.exists() and TEXTS[0] in state.read_text(), 30.0)
        restart(switch, signal.SIGKILL)
        ports = {port["name"]: port for port in switch.ctl("ports")["ports"]}
        assert set(ports) == {"vm1", "vm7"}
        assert (ports["vm7"]["origin"], ports["vm7"]["vlan"]["access"]) == ("runtime", 7)
        assert switch.ctl("port", "vm1")["spec"]["mtu"] == 1400
        assert entries(switch)[TEXTS[0]]["owner"] == "static"
        assert "restored 1 port added at run time: vm7" in switch.log.read_text()


def test_sighup_changes_what_the_file_changed_and_nothing_else(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    assert switch.process is not None
    one.send(frame(MACS[0]))
    two.expect(frame(MACS[0]))
    switch.config["ports"].append(vhost_port("vm3", switch.folder / "vm3.sock", vlan={"access": 30}))
    switch.config["ports"][1]["isolated"] = True
    switch.write()
    switch.process.signal(signal.SIGHUP)
    wait_until("vm3 is there", lambda: "vm3" in switch.metrics().ports())
    assert switch.ctl("port", "vm2")["spec"]["isolated"] is True
    before = switch.ctl("port", "vm1")
    assert before["rx_frames"] == 1, "its counters went on"
    assert before["counters"]["connects"] == 1
    one.send(frame(MACS[0], number=2))
    two.expect(frame(MACS[0], number=2))
    switch.file.write_text("version: 1\nprots: []\n")
    switch.process.signal(signal.SIGHUP)
    wait_until("the refusal shows", lambda: switch.metrics().sum("switch_config_last_apply_success") == 0)
    assert f"{switch.file}:2:1" in switch.log.read_text()
    assert switch.metrics().ports() == ["vm1", "vm2", "vm3"]


def test_a_mac_at_two_ports_is_held_where_it_was_and_named(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    one.send(frame(MACS[0]))
    wait_until("learned", lambda: TEXTS[0] in entries(switch))

    def flap() -> list[dict[str, Any]]:
        for guest in (two, one):
            guest.send(frame(MACS[0]))
        found: list[dict[str, Any]] = switch.ctl("events", "--kind", "fdb_move_damped")["events"]
        return found

    event = wait_until("the culprit is named", flap, 30.0)[0]
    assert {event["port"], event["old_port"]} == {"vm1", "vm2"}
    for words in (TEXTS[0], "vm1", "vm2", "moved 6 times"):
        assert words in event["detail"]
    held = entries(switch, "--owner", "held")
    assert held[TEXTS[0]]["port"] == event["port"]
    assert switch.metrics().sum("switch_fdb_entries", owner="held") == 1
    wait_until("the hold ends", lambda: not entries(switch, "--owner", "held"), 30.0)
    assert entries(switch)[TEXTS[0]]["owner"] == "learned"


def test_a_port_learns_no_more_than_its_limit(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    switch.ctl("set-port", "vm1", "--mac-limit", "2")
    for mac in MACS[:4]:
        one.send(frame(mac))
        two.expect(frame(mac))  # not learned, forwarded all the same
    assert set(entries(switch)) == set(TEXTS[:2])
    refused = wait_until("the refusal is an event", lambda: switch.ctl("events", "--kind", "fdb_refused")["events"])
    assert refused[0]["port"] == "vm1"
    assert switch.metrics().sum("switch_fdb_events_total", event="refused_port_limit") >= 1
    switch.settle().check_conservation()


def test_a_static_flow_cannot_be_stolen(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    switch.ctl("fdb", "add", TEXTS[0], "vm1")
    two.send(frame(MACS[0]))
    one.expect(frame(MACS[0]))
    assert entries(switch)[TEXTS[0]]["port"] == "vm1"
    two.send(frame(MACS[1], MACS[0]))
    one.expect(frame(MACS[1], MACS[0]))


def test_an_apply_that_fails_leaves_everything_as_it_was(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    path = switch.folder / "new.yaml"
    text = switch.file.read_text().replace("name: vm2", "name: vm4").replace("vm2.sock", "none/vm4.sock")
    path.write_text(text)
    before = switch.ctl("port", "vm1")["counters"]["connects"]
    status, _, errors = switch.ctl_status("apply", str(path), json_output=False)
    assert status == 1
    assert "none" in errors
    assert switch.metrics().ports() == ["vm1", "vm2"]
    assert switch.ctl("port", "vm1")["counters"]["connects"] == before
    switch.wait_up("vm1", "vm2")
    one.send(frame(MACS[0]))
    two.expect(frame(MACS[0]))


def test_explain_says_what_a_frame_is_lost_of_as_the_counters_do(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    two.send(frame(MACS[1]))
    wait_until("learned", lambda: TEXTS[1] in entries(switch))
    long = frame(MACS[0], MACS[1]) + bytes(940)  # 1004 bytes, 990 of them behind the header
    rows: list[tuple[list[str], bytes, str, str]] = [
        (["--mtu", "989"], long, "mtu_exceeded", "but port vm2 has mtu 989 and this is 990 bytes"),
        (["--mtu", "0", "--vlan-access", "9"], frame(MACS[0]), "no_destination", "port vm2 does not carry VLAN 0"),
        (["--default", "vlan", "--no-enabled"], frame(MACS[0]), "no_destination", "port vm2 is disabled"),
    ]
    for options, sent, reason, words in rows:
        switch.ctl("set-port", "vm2", *options)
        said = switch.ctl("explain", "vm1", sent.hex())["steps"]
        assert any(words in step for step in said), said
        before = sum(row["frames"] for row in switch.ctl("drops")["drops"] if row["reason"] == reason)
        one.send(sent)
        wait_until(reason, lambda reason=reason, before=before: before + 1 == sum(  # type: ignore[misc]
            row["frames"] for row in switch.ctl("drops")["drops"] if row["reason"] == reason))  # fmt: skip
    switch.ctl("set-port", "vm2", "--enabled")
    two.stop()
    wait_until("vm2 is down", lambda: not switch.ctl("port", "vm2")["up"])
    said = switch.ctl("explain", "vm1", "--to", "ff:ff:ff:ff:ff:ff")["steps"]
    assert said[-1].startswith("but port vm2 is not up (waiting_for_peer)"), said


def test_history_says_where_an_address_was(pair: tuple[Switchd, Guest, Guest]) -> None:
    switch, one, two = pair
    one.send(frame(MACS[0]))
    two.expect(frame(MACS[0]))
    two.send(frame(MACS[0]))
    found = wait_until(
        "the move is known",
        lambda: [event for event in switch.ctl("history", TEXTS[0])["events"] if event["kind"] == "fdb_moved"],
    )
    assert (found[0]["old_port"], found[0]["port"]) == ("vm1", "vm2")
