# SPDX-License-Identifier: Apache-2.0
"""Runs on the test machine: a switch whose uplink is a virtio NIC of QEMU, handed to it by the kernel's vp_vdpa.

    python -m tests.interop.inside.vp_vdpa FOLDER

Beyond the NIC is a station that sends every datagram back (tests.interop.echo). What is asked of QEMU goes through
FOLDER (ask-N.json, answer-N.json). Prints "ok" and a name for each thing that held, and ends with a traceback where one
did not.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from switch.testing import Guest
from tests.interop.inside.vdpa import PATIENCE, frame, ok, port, says, vdpa
from tests.interop.process import wait_until
from tests.interop.switchd import Api, Switchd, vhost_port

PCI = Path("/sys/bus/pci")
NIC = "0000:00:10.0"
GUEST_MAC, STATION_MAC = "02:00:00:00:00:11", "02:00:00:00:00:22"  # neither is the NIC's
FLOWS = 24  # of each queue
# virtio 1.3 4.1.4.3: offsets in the common configuration
FEATURE_SELECT, FEATURES, NUM_QUEUES, STATUS = 8, 12, 18, 20
CTRL_VQ, MQ, VERSION_1 = 17, 22, 32

_numbers = itertools.count()


def ask(folder: Path, command: str, **arguments: Any) -> Any:
    """What QEMU answers, by way of the test outside."""
    number = next(_numbers)
    draft = folder / f"draft-{number}"
    draft.write_text(json.dumps([command, arguments]))
    draft.rename(folder / f"ask-{number}.json")
    answer = folder / f"answer-{number}.json"
    wait_until(f"the answer to {command}", answer.exists, PATIENCE)
    return json.loads(answer.read_text())


def write(path: Path, text: str) -> None:
    path.write_text(text)


@contextmanager
def common_configuration() -> Iterator[Any]:
    """The NIC's registers (virtio 1.3 4.1.4.3), while no driver has it."""
    device = PCI / "devices" / NIC
    space = (device / "config").read_bytes()
    place = space[0x34]
    while place and not (space[place] == 9 and space[place + 3] == 1):
        place = space[place + 1]
    assert place, "the NIC has no common configuration"
    bar, offset = space[place + 4], struct.unpack_from("<I", space, place + 8)[0]
    file = os.open(device / f"resource{bar}", os.O_RDWR)
    try:
        with mmap.mmap(file, mmap.PAGESIZE, offset=offset & -mmap.PAGESIZE) as page:

            def register(kind: Any, at: int) -> Any:
                return kind.from_buffer(page, (offset % mmap.PAGESIZE) + at)

            yield register
    finally:
        os.close(file)


def make_device() -> None:
    """Hand the NIC to vp_vdpa, and make it the vDPA device nic0.

    QEMU shows the queues of further pairs from the moment when their feature is accepted until the next reset, and
    vp_vdpa counts queues once, when the device is made. So the feature is accepted for it beforehand.
    """
    device = PCI / "devices" / NIC
    write(device / "driver_override", "vp-vdpa")
    if (device / "driver").exists():
        write(device / "driver/unbind", NIC)
    with common_configuration() as register:
        for half, bits in ((0, (CTRL_VQ, MQ)), (1, (VERSION_1 - 32,))):
            register(ctypes.c_uint32, FEATURE_SELECT).value = half
            register(ctypes.c_uint32, FEATURES).value = sum(1 << bit for bit in bits)
        assert register(ctypes.c_uint16, NUM_QUEUES).value == 5
    write(PCI / "drivers_probe", NIC)
    assert (device / "driver").resolve().name == "vp-vdpa"
    vdpa("dev", "add", "name", "nic0", "mgmtdev", f"pci/{NIC}")
    assert Path("/dev/vhost-vdpa-0").exists()


def datagram(source_port: int, destination_port: int = 7) -> bytes:
    """From the guest to the station; without a UDP checksum."""
    payload = source_port.to_bytes(2, "big") * 20
    head: bytes = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, b"\x0a\x08\0\1", b"\x0a\x08\0\2"
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + head[12:]
    macs = bytes.fromhex((STATION_MAC + GUEST_MAC).replace(":", ""))
    udp = struct.pack(">HHHH", source_port, destination_port, 8 + len(payload), 0)
    return macs + b"\x08\0" + head + udp + payload


def reply_to(sent: bytes, tag: bytes = b"") -> bytes:
    macs = sent[6:12] + sent[:6]
    return macs + tag + sent[12:26] + sent[30:34] + sent[26:30] + sent[36:38] + sent[34:36] + sent[38:]


def frames_by_queue(switch: Switchd) -> dict[str, dict[str, float]]:
    metrics = switch.metrics()
    return {way: metrics.by(f"switch_port_{way}_frames_total", "queue", port="nic") for way in ("receive", "transmit")}


def both_pairs(switch: Switchd, guest: Guest, first_port: int) -> None:
    """Flows sent on a pair come back on that pair: QEMU's TAP remembers where a flow came from."""
    before = frames_by_queue(switch)
    for number, queue in itertools.product(range(FLOWS), (0, 1)):
        sent = datagram(first_port + 2 * number + queue)
        guest.send(sent, queue=queue, timeout=30.0)
        got = guest.expect(reply_to(sent), timeout=30.0)
        assert got.queue == queue, f"sent on queue {queue}, came back on {got.queue}"
    after = frames_by_queue(switch)
    for way, name in itertools.product(("receive", "transmit"), ("0", "1")):
        moved = after[way].get(name, 0.0) - before[way].get(name, 0.0)
        assert moved >= FLOWS, f"{way} on queue {name}: {moved}"


def setting_up(switch: Switchd, folder: Path) -> None:
    says(switch, "nic", "waiting_for_device", "4 queue pairs", "it has 2", "set queues: 2")
    ok("more pairs than the device has are refused with their number")
    Api(switch.control).ask("PATCH", "/v1/ports/nic", {"queues": 2})
    says(switch, "nic", "running", "ring_packed")
    facts = port(switch, "nic")["facts"]
    assert [facts[name] for name in ("queues", "device_queues", "promiscuous")] == ["2", "2", "on"], facts
    assert "limits" not in facts, facts
    ok("vdpa runs with two pairs, promiscuous")
    # QEMU says that a filter changed only when a command asked for it, and no other driver had the NIC.
    events = ask(folder, "events")
    assert any(event["event"] == "NIC_RX_FILTER_CHANGED" for event in events), events
    (rule,) = ask(folder, "query-rx-filter", name="nic")
    assert rule["promiscuous"] is True, rule
    ok("the NIC was told to take every frame")


def gone_and_back(switch: Switchd, folder: Path) -> None:
    """Only the port of the device that goes is down."""
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(Guest(str(folder / f"{name}.sock"), ready_timeout=PATIENCE)) for name in ("a", "b")
        )
        unbinding = subprocess.Popen(["sh", "-c", f"echo {NIC} >{PCI}/drivers/vp-vdpa/unbind"])
        for mark in range(200):
            wanted = frame("02:00:00:00:00:33", mark, 60)
            one.send(wanted, timeout=30.0)
            other.expect(wanted, timeout=30.0)
        assert unbinding.wait(PATIENCE) == 0
    says(switch, "nic", "waiting_for_device", "was removed")
    assert not (PCI / "devices" / NIC / "driver").exists()
    ok("the NIC was taken away under a running port, and others lost nothing")
    Api(switch.control).ask("PATCH", "/v1/ports/nic", {"packed": False})
    make_device()
    says(switch, "nic", "running")
    assert "ring_packed" not in port(switch, "nic")["facts"]["negotiated_features"]
    ok("it came back, with split rings")


def main(shared: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        make_device()
        ok("the NIC is a vDPA device with five queues")
        parts = [
            vhost_port("guest", folder / "g.sock", queues=2, bridge="br0"),
            {"name": "nic", "type": "vdpa", "device": "/dev/vhost-vdpa-0", "queues": 4, "bridge": "br0"},
            vhost_port("a", folder / "a.sock", bridge="br1"),
            vhost_port("b", folder / "b.sock", bridge="br1"),
        ]
        switch = Switchd(folder, parts, bridges=[{"name": "br0"}, {"name": "br1"}])
        try:
            switch.start()
            setting_up(switch, shared)
            with Guest(str(folder / "g.sock"), queues=2, ready_timeout=PATIENCE) as guest:
                both_pairs(switch, guest, 1000)
                ok("frames to a foreign address come in, on both pairs")
                sent = datagram(999, 8)
                guest.send(sent, timeout=30.0)
                guest.expect(reply_to(sent, bytes.fromhex("81000005")), timeout=30.0)
                ok("a tagged frame comes in")
                for up, stage in ((False, "link_down"), (True, "running")):
                    ask(shared, "set_link", name="nic", up=up)
                    says(switch, "nic", stage)
                both_pairs(switch, guest, 2000)
                ok("the cable was pulled and plugged in")
                gone_and_back(switch, folder)
                both_pairs(switch, guest, 3000)
                ok("frames come in as before")
            switch.settle(PATIENCE).check_conservation()
            ok("every frame is accounted for")
        except BaseException:
            print(switch.log.read_text()[-4000:], flush=True)
            raise
        finally:
            switch.stop()
        vdpa("dev", "del", "nic0")
        ok("nothing is left")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
