# SPDX-License-Identifier: Apache-2.0
"""Two guests that break every rule, beside two that exchange frames: these lose nothing, and the daemon does not grow.

SWITCH_HOSTILE sets for how many seconds (6 unless given), SWITCH_HOSTILE_SEED repeats a run:
`SWITCH_HOSTILE=600 pytest -s tests/system/test_hostile_guests.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from switch.testing import Guest
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, vhost_port

SECONDS = float(os.environ.get("SWITCH_HOSTILE", "6"))
SEED = int(os.environ.get("SWITCH_HOSTILE_SEED", str(random.SystemRandom().getrandbits(32))))
pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)

BURST = 16
LEFT, RIGHT = bytes.fromhex("020000000e01"), bytes.fromhex("020000000e02")
MOST_LOG_BYTES_A_SECOND = 4096  # of each hostile port, after its first burst of events
MOST_GROWTH = 48 << 20


class Exchange:
    """Bursts there and back, each awaited whole and in order."""

    def __init__(self, left: Guest, right: Guest) -> None:
        self._ends = ((left, LEFT), (right, RIGHT))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.frames = 0
        self.lost = ""

    def __enter__(self) -> Exchange:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set() and not self.lost:
            for (source, here), (target, there) in (self._ends, self._ends[::-1]):
                marks = range(self.frames, self.frames + BURST)
                wanted = [there + here + b"\x88\xb5" + mark.to_bytes(8, "big") + bytes(200) for mark in marks]
                for frame in wanted:
                    source.send(frame)
                for frame in wanted:
                    got = target.recv(10.0)
                    if got != frame:
                        self.lost = f"frame {frame[14:22].hex()} expected, {got and got[14:22].hex()} came"
                        return
                self.frames += BURST


def threads_of(pid: int) -> list[str]:
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            names.append((task / "comm").read_text().strip())
    return names


@dataclass(frozen=True)
class Held:
    """What the daemon holds."""

    descriptors: int
    threads: int  # of the core; those of Python's pool come with work, up to a number
    guests: int  # mappings of guests' memory
    mappings: int
    resident: int

    @staticmethod
    def now(pid: int) -> Held:
        own = Path(f"/proc/{pid}")
        maps = (own / "maps").read_text()
        return Held(
            descriptors=len(list((own / "fd").iterdir())),
            threads=sum(name.startswith("sw-") for name in threads_of(pid)),
            guests=maps.count("memfd:hostile"),
            mappings=len(maps.splitlines()),
            resident=int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        )


def what_is_open(pid: int) -> str:
    return f"{[str(fd.readlink()) for fd in Path(f'/proc/{pid}/fd').iterdir()]}, threads {threads_of(pid)}"


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switchd]:
    ports = [
        vhost_port("left", tmp_path / "left.sock", vlan={"access": 10}),
        vhost_port("right", tmp_path / "right.sock", vlan={"access": 10}),
        vhost_port("evil0", tmp_path / "evil0.sock", vlan={"access": 20}),
        vhost_port("evil1", tmp_path / "evil1.sock", vlan={"access": 20}),
    ]
    with Switchd(tmp_path, ports) as running:
        yield running


def attack(folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Both hostile guests at once, in processes of their own; what they did, summed."""
    attackers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.hostile_guest",
                str(folder / f"evil{i}.sock"),
                str(seed + i),
                str(seconds),
            ],
            stdout=subprocess.PIPE,
        )
        for i in (0, 1)
    ]
    done: dict[str, Any] = {}
    for attacker in attackers:
        output = attacker.communicate()[0]
        assert attacker.returncode == 0
        for what, count in json.loads(output).items():
            done[what] = done.get(what, 0) + count
    return done


def test_hostile_guests_cost_only_themselves(switch: Switchd, tmp_path: Path) -> None:
    print(f"SWITCH_HOSTILE_SEED={SEED} SWITCH_HOSTILE={SECONDS:g}")
    assert switch.process is not None
    pid = switch.process.pid
    with Guest(str(tmp_path / "left.sock")) as left, Guest(str(tmp_path / "right.sock")) as right:
        before = Held.now(pid)
        with Exchange(left, right) as exchange:
            attack(tmp_path, SEED, 2)  # what is made once and kept
            warm = Held.now(pid)
            log_before = switch.log.stat().st_size
            frames_before = exchange.frames
            done = attack(tmp_path, SEED + 2, SECONDS)
            assert not exchange.lost, f"seed {SEED}: {exchange.lost}"
            frames = exchange.frames - frames_before
            wait_until(
                "frames still flow", lambda: exchange.lost or exchange.frames > frames_before + frames + 20 * BURST
            )
        assert not exchange.lost, f"seed {SEED}: {exchange.lost}"

        def settled() -> bool:
            held = Held.now(pid)
            return held.descriptors <= before.descriptors and held.threads <= before.threads and held.guests == 0

        try:
            wait_until("nothing of the hostile guests is left", settled, 10.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; held {before}, then {Held.now(pid)}: {what_is_open(pid)}") from error
        after = Held.now(pid)
    log_bytes = switch.log.stat().st_size - log_before
    print(f"{done} beside {frames} frames; log {log_bytes} bytes; held {before}, warm {warm}, then {after}")
    assert done["connections"] > SECONDS
    assert done["messages"] > 20 * SECONDS
    assert done["scribbles"] > SECONDS
    assert frames > 20 * BURST * SECONDS
    assert after.resident < max(before.resident, warm.resident) + MOST_GROWTH, f"seed {SEED}"
    assert log_bytes < 2 * (16 * 1024 + MOST_LOG_BYTES_A_SECOND * SECONDS), f"seed {SEED}"
    # Their ports serve the next guests, whoever was there before, once they have rested from what that one took of the
    # control loop's time.
    next_guests = [Guest(str(tmp_path / f"evil{number}.sock"), ready_timeout=60.0) for number in range(2)]
    with next_guests[0] as one, next_guests[1] as other:
        frame = RIGHT + LEFT + b"\x88\xb5" + bytes(46)
        one.send(frame)
        other.expect(frame)
