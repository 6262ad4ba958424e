# SPDX-License-Identifier: Apache-2.0
"""vDPA on a kernel that has it: the simulated network device as a NIC, and VDUSE devices as interfaces of the host."""

from __future__ import annotations

import json
import subprocess
from dataclasses import astuple
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.machine import Machine
from tests.support.offload_frames import ALL_CASES, unfinished

pytestmark = [pytest.mark.interop, pytest.mark.timeout(700)]
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


@pytest.fixture(scope="module")
def machine() -> Machine:
    """With the modules that its kernel's package lacks; building them takes a minute, once."""
    built = subprocess.run(
        [needs.ROOT / "tools/kernel-modules.sh"], capture_output=True, text=True, check=False, timeout=240
    )
    if built.returncode:
        needs.lacking("no vDPA modules for the test machine", f"tools/kernel-modules.sh says: {built.stderr[-500:]}")
    return Machine(MODULES)


def test_a_switch_drives_a_vdpa_device_and_serves_two(machine: Machine, folder: Path) -> None:
    needs.program("vdpa", "iproute2")
    for program in ("iperf3", "ethtool"):
        needs.program(program, program)
    frames = folder / "frames.json"
    made = [unfinished(case) for case in ALL_CASES if "uso" not in case.needs]
    frames.write_text(json.dumps([[frame.hex(), astuple(vnet)] for frame, vnet in made]))
    output = machine.run(f"exec python -m tests.interop.inside.vdpa {frames}", folder, seconds=420.0)
    held = {line[3:] for line in output.splitlines() if line.startswith("ok ")}
    assert not set(EXPECTED) - held, output
