# SPDX-License-Identifier: Apache-2.0
"""Runs on the test machine: a switch whose ports are a simulated vDPA device and two VDUSE devices of the kernel.

Prints "ok" and a name for each thing that held, and ends with a traceback where one did not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from switch.testing import Guest
from tests.interop import needs
from tests.interop.inside.vhost_net import Api
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.switchd import Switchd, vhost_port

BUS = Path("/sys/bus/vdpa")
PATIENCE = 120.0  # seconds for what takes one: every instruction here is emulated
NIC_MAC = "02:00:00:00:00:77"
GUEST_MAC = "02:00:00:00:00:11"


def ok(what: str) -> None:
    print("ok", what, flush=True)


def vdpa(*arguments: str) -> None:
    done = subprocess.run(
        [needs.program("vdpa", "iproute2"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"vdpa {' '.join(arguments)}: {done.stdout}{done.stderr}"


def bind(device: str, driver: str) -> None:
    """Let `driver` have a device of the vDPA bus."""
    place = BUS / "devices" / device
    (place / "driver_override").write_text(driver)
    if (place / "driver").exists():
        (place / "driver" / "unbind").write_text(device)
    (BUS / "drivers_probe").write_text(device)
    assert (place / "driver").resolve().name == driver, f"{device} is with {(place / 'driver').resolve()}"


def frame(destination: str, mark: int, size: int) -> bytes:
    head = destination.replace(":", "") + GUEST_MAC.replace(":", "") + "88b5"
    return bytes.fromhex(head) + mark.to_bytes(2, "big") + bytes(size - 16)


def port(switch: Switchd, name: str) -> dict[str, Any]:
    found = Api(switch.control).ask("GET", f"/v1/ports/{name}")
    assert isinstance(found, dict)
    return found


def start(switch: Switchd) -> None:
    process = switch.start(wait=False)

    def answers() -> bool:
        process.check()
        try:
            return bool(Api(switch.control).ask("GET", "/v1/ports"))
        except OSError:
            return False

    wait_until("switchd answers", answers, PATIENCE)


def says(switch: Switchd, name: str, *words: str) -> None:
    def said() -> bool:
        text = json.dumps(port(switch, name))
        return all(word in text for word in words)

    try:
        wait_until(f"port {name} says {words}", said, PATIENCE)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{json.dumps(port(switch, name), indent=1)}") from error


def driver_role(switch: Switchd, folder: Path) -> None:
    """vdpa_sim_net gives back what is sent to its own address, and drops other unicast."""
    says(switch, "nic", "waiting_for_device", "vdpa dev add")
    ok("a device that is missing is waited for")
    vdpa("dev", "add", "name", "sim0", "mgmtdev", "vdpasim_net", "mac", NIC_MAC)
    if not Path("/dev/vhost-vdpa-0").exists():
        bind("sim0", "vhost_vdpa")
    says(switch, "nic", "running", NIC_MAC)
    ok("vdpa runs")
    with Guest(str(folder / "g.sock"), ready_timeout=PATIENCE) as guest:
        says(switch, "guest", "running")
        for mark in range(300):  # more than a lap of the rings
            wanted = frame(NIC_MAC, mark, 60 + mark * 4)
            guest.send(wanted, timeout=10.0)
            guest.expect(wanted, timeout=10.0)
        ok("300 frames went through the device and came back")
    busy = subprocess.run(
        [sys.executable, "-c", "open('/dev/vhost-vdpa-0', 'r+b', buffering=0)"], capture_output=True, check=False
    )
    assert b"Errno 16" in busy.stderr
    ok("nobody else can open the device")
    # Removal waits for the switch to let go of it, and succeeds because it does.
    vdpa("dev", "del", "sim0")
    says(switch, "nic", "waiting_for_device", "was removed")
    ok("the device was removed under a running port")
    vdpa("dev", "add", "name", "sim0", "mgmtdev", "vdpasim_net", "mac", NIC_MAC)
    says(switch, "nic", "running", NIC_MAC)
    ok("the device came back")


def interface_of(device: str) -> str:
    found = list((BUS / "devices" / device).glob("virtio*/net/*"))
    return found[0].name if found else ""


def device_role(switch: Switchd) -> None:
    with Netns() as left, Netns() as right:
        for name, place, address in (("vd0", left, "10.7.0.1"), ("vd1", right, "10.7.0.2")):
            says(switch, name, "waiting_for_attach", f"vdpa dev add name {name} mgmtdev vduse")
            vdpa("dev", "add", "name", name, "mgmtdev", "vduse")
            bind(name, "virtio_vdpa")
            interface = wait_until(f"{name} has an interface", lambda name=name: interface_of(name), PATIENCE)  # type: ignore[misc]
            subprocess.run(["ip", "link", "set", interface, "netns", place.name], check=True)
            place.ip("link", "set", interface, "name", "v0")
            place.address("v0", address)
            says(switch, name, "running", "virtio_vdpa")
        ok("two interfaces of the host behind VDUSE")
        assert "02:00:00:00:00:a0" in left.ip("link", "show", "v0")
        ok("the address is the configured one")
        left.wait_ping("10.7.0.2", PATIENCE)
        right.wait_ping("10.7.0.1", PATIENCE)
        ok("ping both ways")
        iperf(left, right)
        assert switch.process is not None
        switch.process.kill()
        assert not left.pings("10.7.0.2")
        start(switch)
        left.wait_ping("10.7.0.2", PATIENCE)
        iperf(right, left)
        ok("the next switch goes on under running drivers after kill -9")
        switch.settle(PATIENCE).check_conservation()
        ok("every frame is accounted for")
        left.ip("link", "set", "v0", "down")
        left.address("v0", "10.7.1.1")
        left.wait_ping("10.7.0.2", PATIENCE)
        ok("interface down and up")
        vdpa("dev", "del", "vd0")
        says(switch, "vd0", "waiting_for_attach")
        vdpa("dev", "add", "name", "vd0", "mgmtdev", "vduse")
        bind("vd0", "virtio_vdpa")
        interface = wait_until("vd0 has an interface again", lambda: interface_of("vd0"), PATIENCE)
        subprocess.run(["ip", "link", "set", interface, "netns", left.name], check=True)
        left.address(interface, "10.7.0.1")
        left.wait_ping("10.7.0.2", PATIENCE)
        ok("detached and attached again")
        vdpa("dev", "del", "vd0")
        vdpa("dev", "del", "vd1")


def iperf(client: Netns, server: Netns) -> None:
    address = "10.7.0.2" if "10.7.0.2" in server.ip("address") else "10.7.0.1"
    with tempfile.TemporaryDirectory() as place:
        listener = Process([*server.prefix(), "iperf3", "-s", "-1"], Path(place) / "log")
        try:
            wait_until("iperf3 listens", lambda: "listening" in listener.text(), PATIENCE)
            text = client.run("iperf3", "-c", address, "-t", "2", "-J", seconds=PATIENCE)
        finally:
            listener.stop()
    sent = json.loads(text)["end"]["sum_received"]["bytes"]
    assert sent > 1_000_000, text[-500:]
    ok(f"iperf3 {sent} bytes")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        parts = [
            vhost_port("guest", folder / "g.sock", bridge="br1"),
            {"name": "nic", "type": "vdpa", "device": "/dev/vhost-vdpa-0", "bridge": "br1", "learning": False},
            {"name": "vd0", "type": "vduse", "device": "vd0", "bridge": "br0", "mac": "02:00:00:00:00:a0"},
            {"name": "vd1", "type": "vduse", "device": "vd1", "bridge": "br0", "packed": False},
        ]
        switch = Switchd(folder, parts, bridges=[{"name": "br0"}, {"name": "br1"}])
        try:
            start(switch)
            driver_role(switch, folder)
            device_role(switch)
        except BaseException:
            print(switch.log.read_text()[-4000:], flush=True)
            raise
        finally:
            switch.stop()
        assert not Path("/dev/vduse/vd0").exists(), "a device that is not attached goes with its port"
        ok("nothing is left")


if __name__ == "__main__":
    main()
