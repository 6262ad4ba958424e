# SPDX-License-Identifier: Apache-2.0
"""Runs on the test machine: a switch whose ports are a simulated vDPA device and VDUSE devices of the kernel.

    python -m tests.interop.inside.vdpa FRAMES      JSON: [[frame in hex, [fields of Vnet]], ...]

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
from switch.testing.guest import Vnet
from tests.interop import needs
from tests.interop.inside.vhost_net import checksum_errors, iperf_server, transfer
from tests.interop.netns import Netns
from tests.interop.process import wait_until
from tests.interop.switchd import Api, Switchd, vhost_port

BUS = Path("/sys/bus/vdpa")
PATIENCE = 180.0  # seconds for what takes one: every instruction here is emulated
NIC_MAC = "02:00:00:00:00:77"
GUEST_MAC = "02:00:00:00:00:11"
STATIONS = {"vd0": "10.7.0.1", "vd1": "10.7.0.2", "plain": "10.7.0.3"}


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


def both_roles(switch: Switchd, folder: Path, frames: Path) -> None:
    """Port `near` drives, through the kernel, the device that port `far` serves. Frames with a checksum or a
    segmentation left open pass as they are, both ways."""
    says(switch, "far", "waiting_for_attach")
    vdpa("dev", "add", "name", "far", "mgmtdev", "vduse")
    bind("far", "vhost_vdpa")
    says(switch, "near", "running", "ring_packed", "host_tso4", "guest_csum")
    says(switch, "far", "running", "vhost_vdpa", "ring_packed")
    ok("vdpa runs over vduse")
    options: dict[str, Any] = {"offloads": True, "ready_timeout": PATIENCE}
    with Guest(str(folder / "a.sock"), **options) as one, Guest(str(folder / "b.sock"), **options) as other:
        says(switch, "a", "running")
        says(switch, "b", "running")
        for text, numbers in json.loads(frames.read_text()):
            there, vnet = bytes.fromhex(text), Vnet(*numbers)
            back = there[6:12] + there[:6] + there[12:]
            for source, sink, sent in ((one, other, there), (other, one, back)):
                source.send(sent, vnet=vnet, timeout=30.0)
                got = sink.recv_with_header(30.0)
                assert got is not None, f"nothing of {vnet} arrived"
                assert got.frame == sent
                assert got.vnet.flags & Vnet.NEEDS_CSUM
                assert (got.vnet.gso_type, got.vnet.gso_size) == (vnet.gso_type, vnet.gso_size)
                assert (got.vnet.csum_start, got.vnet.csum_offset) == (vnet.csum_start, vnet.csum_offset)
        ok("offloads pass from vdpa to vduse and back")
    vdpa("dev", "del", "far")
    says(switch, "near", "waiting_for_device")
    says(switch, "far", "waiting_for_attach")
    ok("vdpa let go of vduse")


def interface_of(device: str) -> str:
    found = list((BUS / "devices" / device).glob("virtio*/net/*"))
    return found[0].name if found else ""


def attach(name: str, place: Netns, interface: str, address: str) -> None:
    """Put a VDUSE device on the bus, and its interface into a namespace."""
    vdpa("dev", "add", "name", name, "mgmtdev", "vduse")
    bind(name, "virtio_vdpa")
    made = wait_until(f"{name} has an interface", lambda: interface_of(name), PATIENCE)
    subprocess.run(["ip", "link", "set", made, "netns", place.name], check=True)
    place.ip("link", "set", made, "name", interface)
    place.address(interface, address)


def device_role(switch: Switchd, folder: Path) -> None:
    """Two interfaces of the kernel and a tap without offloads, each in a namespace: whoever is behind the tap verifies
    checksums that an interface left to the switch."""
    with Netns() as left, Netns() as right, Netns() as plain:
        nets = {"vd0": left, "vd1": right, "plain": plain}
        for name in ("vd0", "vd1"):
            says(switch, name, "waiting_for_attach", f"vdpa dev add name {name} mgmtdev vduse")
            attach(name, nets[name], "v0", STATIONS[name])
            says(switch, name, "running", "virtio_vdpa")
        subprocess.run(["ip", "link", "set", "t-plain", "netns", plain.name], check=True)
        plain.address("t-plain", STATIONS["plain"])
        ok("two interfaces of the host behind VDUSE")
        assert "02:00:00:00:00:a0" in left.ip("link", "show", "v0")
        ok("the address is the configured one")
        left.wait_ping(STATIONS["vd1"], PATIENCE)
        right.wait_ping(STATIONS["plain"], PATIENCE)
        ok("ping both ways")
        offloads(left)
        for one, other in (("vd0", "vd1"), ("vd0", "plain"), ("vd1", "plain")):
            traffic(nets, one, other, folder)
        assert switch.process is not None
        switch.process.kill()
        assert not left.pings(STATIONS["vd1"])
        switch.start()
        subprocess.run(["ip", "link", "set", "t-plain", "netns", plain.name], check=True)
        plain.address("t-plain", STATIONS["plain"])
        left.wait_ping(STATIONS["vd1"], PATIENCE)
        traffic(nets, "vd1", "vd0", folder)
        traffic(nets, "vd1", "plain", folder)
        ok("the next switch goes on under running drivers after kill -9")
        for name, station in nets.items():
            errors = checksum_errors(station)
            assert not any(errors.values()), f"{name}: {errors}"
        ok("no checksum error at any station")
        switch.settle(PATIENCE).check_conservation()
        ok("every frame is accounted for")
        left.ip("link", "set", "v0", "down")
        left.ip("link", "set", "v0", "up")
        left.wait_ping(STATIONS["vd1"], PATIENCE)
        ok("interface down and up")
        vdpa("dev", "del", "vd0")
        says(switch, "vd0", "waiting_for_attach")
        attach("vd0", left, "v1", STATIONS["vd0"])
        left.wait_ping(STATIONS["vd1"], PATIENCE)
        ok("detached and attached again")
        vdpa("dev", "del", "vd0")
        vdpa("dev", "del", "vd1")


def offloads(station: Netns) -> None:
    """The kernel took what the device offers."""
    said = station.run(needs.program("ethtool", "ethtool"), "-k", "v0")
    for feature in ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"):
        assert f"{feature}: on" in said, said
    ok("the interfaces leave checksums and segmentation to the switch")


def traffic(nets: dict[str, Netns], one: str, other: str, folder: Path) -> None:
    """TCP and UDP both ways."""
    nets[one].wait_ping(STATIONS[other], PATIENCE)
    with iperf_server(nets[other], folder):
        for direction in ([], ["-R"]):
            tcp = transfer(nets[one], STATIONS[other], "-n", "4M", *direction)
            assert tcp["sum_received"]["bytes"] >= 100_000, tcp
        udp = transfer(nets[one], STATIONS[other], "-u", "-n", "100K", "-b", "4M", "-l", "1400")
        assert udp["sum"]["lost_packets"] * 2 < udp["sum"]["packets"], udp["sum"]
    ok(f"TCP and UDP between {one} and {other}")


def main(frames: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        parts = [
            vhost_port("guest", folder / "g.sock", bridge="br1"),
            {"name": "nic", "type": "vdpa", "device": "/dev/vhost-vdpa-0", "bridge": "br1", "learning": False},
            vhost_port("a", folder / "a.sock", bridge="br2"),
            {"name": "near", "type": "vdpa", "device": "/dev/vhost-vdpa-1", "bridge": "br2"},
            {"name": "far", "type": "vduse", "device": "far", "bridge": "br3"},
            vhost_port("b", folder / "b.sock", bridge="br3"),
            {"name": "vd0", "type": "vduse", "device": "vd0", "bridge": "br0", "mac": "02:00:00:00:00:a0"},
            {"name": "vd1", "type": "vduse", "device": "vd1", "bridge": "br0", "packed": False},
            {"name": "plain", "type": "tap", "device": "t-plain", "bridge": "br0", "offloads": False},
        ]
        switch = Switchd(folder, parts, bridges=[{"name": f"br{number}"} for number in range(4)])
        try:
            switch.start()
            driver_role(switch, folder)
            both_roles(switch, folder, frames)
            device_role(switch, folder)
        except BaseException:
            print(switch.log.read_text()[-4000:], flush=True)
            raise
        finally:
            switch.stop()
        assert not Path("/dev/vduse/vd0").exists(), "a device that is not attached goes with its port"
        ok("nothing is left")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
