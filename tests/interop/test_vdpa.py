# SPDX-License-Identifier: Apache-2.0
"""vDPA on a kernel that has it: the simulated network device as a NIC, and VDUSE devices as interfaces of the host."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.machine import Hardware, Machine
from tests.interop.netns import Netns
from tests.interop.process import Process, wait_until
from tests.interop.qemu import Qmp
from tests.support.offload_frames import ALL_CASES, unfinished

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.timeout(700)]
pytest.importorskip("switch._core", reason="the compiled module is not built")

# vhost_vdpa first: a new device goes to the driver that was loaded first.
MODULES = ("vdpa_sim_net", "vhost_vdpa", "virtio_net", "virtio_vdpa", "vduse", "tun")
EXPECTED = (
    "a device that is missing is waited for",
    "vdpa runs",
    "300 frames went through the device and came back",
    "nobody else can open the device",
    "the device was removed under a running port",
    "the device came back",
    "vdpa runs over vduse",
    "offloads pass from vdpa to vduse and back",
    "vdpa let go of vduse",
    "two interfaces of the host behind VDUSE",
    "the address is the configured one",
    "ping both ways",
    "the interfaces leave checksums and segmentation to the switch",
    "TCP and UDP between vd0 and vd1",
    "TCP and UDP between vd0 and plain",
    "TCP and UDP between vd1 and plain",
    "the next switch goes on under running drivers after kill -9",
    "no checksum error at any station",
    "every frame is accounted for",
    "interface down and up",
    "detached and attached again",
    "nothing is left",
)
# Without virtio_net, so that nobody but the switch sends the NIC a command.
NIC_MODULES = ("vp_vdpa", "vhost_vdpa")
NIC_EXPECTED = (
    "the NIC is a vDPA device with five queues",
    "more pairs than the device has are refused with their number",
    "vdpa runs with two pairs, promiscuous",
    "the NIC was told to take every frame",
    "frames to a foreign address come in, on both pairs",
    "a tagged frame comes in",
    "the cable was pulled and plugged in",
    "the NIC was taken away under a running port, and others lost nothing",
    "it came back, with split rings",
    "frames come in as before",
    "every frame is accounted for",
    "nothing is left",
)


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    """Those that the kernel's package lacks; building them takes a minute, once."""
    built = subprocess.run(
        [needs.ROOT / "tools/kernel-modules.sh"], capture_output=True, text=True, check=False, timeout=240
    )
    if built.returncode:
        needs.lacking("no vDPA modules for the test machine", f"tools/kernel-modules.sh says: {built.stderr[-500:]}")


def test_a_switch_drives_a_vdpa_device_and_serves_two(folder: Path) -> None:
    needs.program("vdpa", "iproute2")
    for program in ("iperf3", "ethtool"):
        needs.program(program, program)
    frames = folder / "frames.json"
    made = [unfinished(case) for case in ALL_CASES if case.passes and "uso" not in case.needs]
    frames.write_text(json.dumps([[frame.hex(), astuple(vnet)] for frame, vnet in made]))
    output = Machine(MODULES).run(f"exec python -m tests.interop.inside.vdpa {frames}", folder, seconds=420.0)
    held = {line[3:] for line in output.splitlines() if line.startswith("ok ")}
    assert not set(EXPECTED) - held, output


def nic_of(outside: Netns, folder: Path) -> Hardware:
    """A virtio NIC of two queue pairs whose cable ends in the interface t0 of a namespace. vhost-vdpa wants an IOMMU
    that keeps caches coherent, and vp_vdpa MSI-X."""
    queues = "tap,id=cable,ifname=t0,script=no,downscript=no,vhost=off,queues=2"
    nic = (
        "virtio-net-pci,id=nic,netdev=cable,addr=0x10,mac=02:00:00:00:00:77,romfile=,disable-legacy=on,"
        "iommu_platform=on,mq=on,vectors=8,packed=on"
    )
    return Hardware(
        ("-device", "intel-iommu,snoop-control=on", "-netdev", queues, "-device", nic,
         "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        "intel_iommu=on",
        outside.prefix(),
    )  # fmt: skip


def serve(machine: Process, folder: Path, seconds: float) -> None:
    """Ask QEMU what the machine wants to know, until it ends or the time does."""
    deadline = time.monotonic() + seconds
    with Qmp(folder / "qmp") as monitor:
        while machine.status is None and time.monotonic() < deadline:
            for path in sorted(folder.glob("ask-*.json")):
                command, arguments = json.loads(path.read_text())
                answer = monitor.events if command == "events" else monitor.ask(command, **arguments)
                draft = folder / "draft-answer"
                draft.write_text(json.dumps(answer))
                path.unlink()
                draft.rename(folder / path.name.replace("ask", "answer"))
            try:
                monitor.ask("query-status")  # and take in what happened
            except (OSError, ValueError):  # it is ending
                return
            time.sleep(0.1)


def test_a_nic_that_speaks_virtio_has_two_pairs_and_takes_every_frame(folder: Path) -> None:
    needs.program("vdpa", "iproute2")
    with Netns() as outside:
        outside.ip("tuntap", "add", "dev", "t0", "mode", "tap", "multi_queue")
        outside.ip("link", "set", "t0", "up")
        station = Process([*outside.prefix(), sys.executable, "-m", "tests.interop.echo", "t0"], folder / "echo.log")
        machine = Machine(NIC_MODULES)
        process = machine.start(
            f"exec python -m tests.interop.inside.vp_vdpa {folder}", folder, hardware=nic_of(outside, folder)
        )
        try:
            wait_until("QEMU has made its socket", (folder / "qmp").exists, 60.0)
            serve(process, folder, 420.0)
            done = machine.finish(process, folder, 20.0)
        finally:
            process.kill()
            station.stop()
    held = {line[3:] for line in done.output.splitlines() if line.startswith("ok ")}
    assert not set(NIC_EXPECTED) - held, done.output
