# SPDX-License-Identifier: Apache-2.0
"""Many ports: those that nobody uses cost nothing and disturb nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import testpmd
from tests.interop.switchd import Switchd, vhost_port
from tests.interop.test_testpmd import MAC_A, MAC_B, exchange
from tests.interop.testpmd import VirtioUser

pytestmark = pytest.mark.interop

PORTS = 64
IDLE_SHARE = 0.02  # of one CPU, all threads of the daemon together


@pytest.fixture(scope="module")
def switch(module_folder: Path) -> Iterator[Switchd]:
    ports = [vhost_port(f"vm{index}", module_folder / f"vm{index}.sock") for index in range(PORTS)]
    with Switchd(module_folder, ports) as daemon:
        yield daemon


def idle_share(switch: Switchd, seconds: float = 5.0) -> float:
    """Share of a CPU that the daemon uses while nothing happens: shows whether it sleeps, and is no benchmark."""
    assert switch.process is not None
    before, began = switch.process.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    return (switch.process.cpu_seconds() - before) / (time.monotonic() - began)


def test_an_idle_switch_sleeps(switch: Switchd) -> None:
    switch.settle()
    assert idle_share(switch) < IDLE_SHARE


def test_two_guests_among_64_ports_lose_nothing(switch: Switchd, folder: Path, cpus: tuple[int, int]) -> None:
    names = ("vm7", f"vm{PORTS - 1}")
    devices = [VirtioUser(switch.folder / f"{name}.sock", mac) for name, mac in zip(names, (MAC_A, MAC_B), strict=True)]
    with (
        testpmd.guest(devices[0], folder, cpus[1], MAC_B) as first,
        testpmd.guest(devices[1], folder, cpus[1], MAC_A) as second,
    ):
        switch.wait_up(*names)
        counts = exchange(first, second, 20_000)
        after = switch.settle()
        for name, count in zip(names, counts, strict=True):
            assert after.received(name) == count.transmitted
            assert not after.drops(name)
        after.check_conservation()
        assert len(after.ports()) == PORTS
        assert idle_share(switch) < IDLE_SHARE, "with two guests connected but silent"
