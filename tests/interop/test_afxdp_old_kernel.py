# SPDX-License-Identifier: Apache-2.0
"""AF_XDP on a kernel of a distribution that knows less of it: no frames in several buffers, small send budgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.machine import Machine

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

SCRIPT = """
set -e
ip netns add far
ip link add name up0 type veth peer name far0 netns far
ip link add name up1 type veth peer name far1 netns far
for device in up0 up1; do ip link set $device up; done
for device in far0 far1; do ip -n far link set $device up; done
python - <<'END'
{python}
END
"""
# Frames cross the switch from one veth to the other, in bursts beyond what one system call of this kernel sends.
PYTHON = """
import json, os, socket, subprocess, time
from switch.datapath import DatapathOptions, PortSpec
from switch.errors import SwitchError
from switch.native import NativeDatapath

def sockets():
    found = []
    for name in ("far0", "far1"):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        made.bind((name, 0x88B5))
        made.settimeout(20)
        found.append(made)
    return found

home = os.open("/proc/self/ns/net", os.O_RDONLY)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
far = os.open("/var/run/netns/far", os.O_RDONLY)
assert libc.setns(far, 0x40000000) == 0
left, right = sockets()
assert libc.setns(home, 0x40000000) == 0

said = {"kernel": os.uname().release}
path = NativeDatapath(DatapathOptions(workers=(0,), memory_bytes=1 << 21, pin=False))
path.start()
path.add_bridge("br0", 300, 1024)
for name, device in (("left", "up0"), ("right", "up1")):
    path.add_port(PortSpec(name=name, type="afxdp", bridge="br0", device=device))
said["facts"] = dict(path.port("left").facts)
frame = bytes.fromhex("525400000002 525400000001 88b5".replace(" ", ""))
for number in range(200):
    left.send(frame + number.to_bytes(2, "big") + bytes(1498))
said["order"] = [int.from_bytes(right.recv(2048)[14:16], "big") for _ in range(200)] == list(range(200))
path.del_port("left")
for device, netns in (("up0", []), ("far0", ["-n", "far"])):
    subprocess.run(["ip", *netns, "link", "set", device, "mtu", "9000"], check=True)
try:
    path.add_port(PortSpec(name="left", type="afxdp", bridge="br0", device="up0"))
except SwitchError as error:
    said["refused"] = str(error)
path.stop()
print("SAID", json.dumps(said))
"""


def test_a_kernel_without_multi_buffer_carries_frames_of_one_buffer(folder: Path) -> None:
    output = Machine(["veth"]).run(SCRIPT.format(python=PYTHON), folder, 200)
    said = json.loads(output.partition("SAID ")[2])
    assert said["facts"]["xdp"] == "in the driver", said
    assert said["facts"]["multi_buffer"].startswith("no"), said
    assert said["order"]
    assert "ip link set up0 mtu 1774" in said["refused"]
