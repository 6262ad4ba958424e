# SPDX-License-Identifier: Apache-2.0
"""Somebody removes sockets under a running switch: who is connected stays so, and others can come again."""

from __future__ import annotations

import shutil
from pathlib import Path

from switch.testing import Guest
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port

FRAME = bytes.fromhex("525400000002 525400000001 0800").ljust(60, b"\0")


def test_sockets_of_guests_are_made_again(folder: Path) -> None:
    place = folder / "guests"
    place.mkdir()
    ports = [vhost_port(name, place / f"{name}.sock", socket_mode="0600") for name in ("vm1", "vm2")]
    with Switchd(folder, ports) as switch:
        with Guest(ports[0]["socket"]) as one, Guest(ports[1]["socket"]) as two:
            switch.wait_up("vm1", "vm2")
            for file in place.iterdir():
                file.unlink()
            one.send(FRAME)
            two.expect(FRAME)
            wait_until("both sockets are there again", lambda: len(list(place.iterdir())) == 2, 30)
            one.send(FRAME)
            two.expect(FRAME)
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in place.iterdir())
        with Guest(ports[0]["socket"]) as one, Guest(ports[1]["socket"]) as two:
            switch.wait_up("vm1", "vm2")
            one.send(FRAME)
            two.expect(FRAME)
        said = switch.ctl_status("events", json_output=False)[1]
        assert said.count("was removed by somebody: listening there again") == 2

        shutil.rmtree(place)
        wait_until("the reason is told", lambda: "to make it again failed" in str(switch.ctl("port", "vm1")), 30)
        assert f"listen on {place}/vm1.sock" in switch.ctl("port", "vm1")["detail"]
        place.mkdir()
        wait_until("both sockets are there again", lambda: len(list(place.iterdir())) == 2, 30)
        assert "nobody is connected" in switch.ctl("port", "vm1")["detail"]
    assert not list(place.iterdir())


def test_the_socket_of_an_uplink_is_made_again(folder: Path) -> None:
    """A `virtiouser` port that listens, and the switch that connects to it."""
    place = folder / "uplinks"
    place.mkdir()
    (folder / "other").mkdir()
    link = place / "link.sock"
    uplink = {"name": "uplink", "type": "virtiouser", "socket": str(link), "socket_owner": "switch"}
    uplink["socket_mode"] = "0600"
    other_ports = [vhost_port("vm2", folder / "vm2.sock"), vhost_port("link", link, server=True)]
    with (
        Switchd(folder, [vhost_port("vm1", folder / "vm1.sock"), uplink]) as switch,
        Switchd(folder / "other", other_ports) as other,
        Guest(str(folder / "vm1.sock")) as one,
        Guest(str(folder / "vm2.sock")) as two,
    ):

        def crosses() -> None:
            switch.wait_up("vm1", "uplink")
            other.wait_up("vm2", "link")
            one.send(FRAME)
            two.expect(FRAME)

        crosses()
        link.unlink()
        crosses()
        wait_until("the socket is there again", link.exists, 30)
        assert link.stat().st_mode & 0o777 == 0o600
        crosses()
        other.ctl("del-port", "link")
        other.ctl("add-port", "vhostuser", "link", "--socket", str(link), "--socket-owner", "peer")
        crosses()
        said = switch.ctl_status("events", json_output=False)[1]
        assert said.count(f"{link} was removed by somebody: listening there again") == 1

        other.ctl("del-port", "link")
        shutil.rmtree(place)
        wait_until("the reason is told", lambda: "to make it again failed" in str(switch.ctl("port", "uplink")), 30)
        assert f"listen on {link}" in switch.ctl("port", "uplink")["detail"]
        place.mkdir()
        wait_until("the socket is there again", link.exists, 30)
        assert "to make it again failed" not in switch.ctl("port", "uplink")["detail"]
    assert not link.exists()
