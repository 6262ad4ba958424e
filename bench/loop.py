# SPDX-License-Identifier: Apache-2.0
"""DPDK's own guests: one testpmd with a virtio-user port for each port of the switch, sending back what arrives.

A closed loop: as many frames circulate as were put in, 8 bursts per guest, and none is made anew. testpmd itself
counts, once a second.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench import machine
from bench.cases import Case
from bench.measure import TRIES, Outcome, needs_of
from bench.process import BenchError, Child, wait_until
from bench.switches import LOAD_CPU, Switch

PROMPT = "testpmd> "
BURSTS = 8
FIRST_WARM_UP = 1.0
WARM_UP = 0.3


class LoopGuests:
    """An interactive testpmd on a terminal of its own."""

    def __init__(self, case: Case, switch: Switch) -> None:
        program = shutil.which("dpdk-testpmd")
        if program is None:
            raise BenchError("no dpdk-testpmd: apt-get install dpdk-dev")
        self._switch = switch
        self._ports = case.ports
        self._text = ""
        self._at = 0
        self._master, slave = pty.openpty()
        vdevs, peers = [], []
        for i in range(case.ports):
            vdevs.append(
                f"--vdev=net_virtio_user{i},mac=02:00:00:00:{i:02x}:01,path={switch.path(i)},queues=1,"
                f"queue_size={case.ring},packed_vq={case.packed:d},mrg_rxbuf={case.mergeable:d},"
                f"in_order={case.in_order:d},vectorized=0,server={switch.guest_listens:d}"
            )
            peers.append(f"--eth-peer={i},02:00:00:00:{i ^ 1:02x}:01")
        command = [
            program, "--lcores", f"0@{LOAD_CPU},1@{LOAD_CPU}", "--no-pci", "--in-memory", "--single-file-segments",
            "-m", "192", "--no-telemetry", *vdevs, "--", "--interactive", "--nb-cores=1", "--port-topology=loop",
            "--forward-mode=mac", "--total-num-mbufs=8192", f"--burst={case.burst}", f"--txpkts={case.size}",
            f"--rxd={case.ring}", f"--txd={case.ring}", "--disable-link-check", *peers,
        ]  # fmt: skip
        folder = str(switch.folder)
        self.child = Child(
            command, switch.folder / "guests.log", {LOAD_CPU},
            {"RUNTIME_DIRECTORY": folder + "/guests", "XDG_RUNTIME_DIR": folder + "/guests"}, slave, slave,
        )  # fmt: skip
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is gone
            while data := os.read(self._master, 65536):
                self._text += data.decode(errors="replace").replace("\r", "")

    def _answer(self) -> str:
        wait_until("testpmd's prompt", lambda: self._text.find(PROMPT, self._at) >= 0, 20, self.child)
        end = self._text.find(PROMPT, self._at)
        answer = self._text[self._at : end]
        self._at = end + len(PROMPT)
        return answer

    def do(self, command: str) -> str:
        os.write(self._master, command.encode() + b"\n")
        return self._answer()

    def start(self) -> None:
        self.do(f"start tx_first {BURSTS}")

    def received(self) -> int:
        text = "".join(self.do(f"show port stats {i}") for i in range(self._ports))
        return sum(int(number) for number in re.findall(r"RX-packets:\s+(\d+)", text))

    def close(self) -> None:
        self.child.stop()
        self._reader.join(3.0)
        os.close(self._master)


def measure_loop(case: Case, switches: Sequence[Switch], rounds: int, seconds: float) -> dict[str, Outcome]:
    outcomes = {switch.label: Outcome() for switch in switches}
    with ExitStack() as house:
        guests: dict[str, LoopGuests] = {}
        for switch in switches:
            switch.start(needs_of(case))
            house.callback(switch.stop)
            guests[switch.label] = LoopGuests(case, switch)
            house.callback(guests[switch.label].close)
            time.sleep(FIRST_WARM_UP)  # OVS and testpmd take up to that long to connect
            guests[switch.label].start()
            time.sleep(FIRST_WARM_UP)
            guests[switch.label].child.pause()
            switch.pause()
        for switch in switches:
            house.callback(switch.resume)
        for number in range(rounds):
            for switch in switches if number % 2 == 0 else reversed(switches):
                _turn(case, switch, guests[switch.label], outcomes[switch.label], seconds)
    return outcomes


def _turn(case: Case, switch: Switch, guests: LoopGuests, outcome: Outcome, seconds: float) -> None:
    switch.resume()
    guests.child.resume()
    time.sleep(WARM_UP)
    for _ in range(TRIES):
        busy_before, times_before = switch.busy(), machine.cpu_times([*switch.children, guests.child])
        before, began = guests.received(), time.monotonic()
        time.sleep(seconds)
        after, ended = guests.received(), time.monotonic()
        times_after, busy_after = machine.cpu_times([*switch.children, guests.child]), switch.busy()
        noise = machine.noise(times_before, times_after, ended - began)
        if not noise.too_much:
            break
        outcome.noisy += 1
    else:
        outcome.still_noisy += 1
    guests.child.pause()
    switch.pause()
    if after == before:
        raise BenchError(f"{switch.label}: no frame arrived")
    rate = (after - before) / (ended - began)
    outcome.mpps.append(rate / 1e6)
    outcome.gbits.append(rate * case.size * 8 / 1e9)
    outcome.steal.append(noise.steal)
    outcome.foreign.append(noise.foreign)
    if busy_before and busy_after and busy_after.frames > busy_before.frames:
        outcome.cycles.append((busy_after.cycles - busy_before.cycles) / (busy_after.frames - busy_before.frames))
