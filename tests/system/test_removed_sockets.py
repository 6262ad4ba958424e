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
