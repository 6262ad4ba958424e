# SPDX-License-Identifier: Apache-2.0
"""libibverbs, pyverbs and the kernel's RDMA as they are, on a machine with rdma_rxe: see rxe_script.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.machine import Machine
from tests.support.verbs_standin import need_pyverbs

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]


def test_what_software_rdma_can_show_of_a_verbs_port(folder: Path) -> None:
    need_pyverbs(sys.executable)
    needs.program("rdma", "iproute2")
    machine = Machine(["rdma_rxe", "ib_uverbs", "dummy", "crc32_generic"])
    output = machine.run("exec python -m tests.interop.rxe_script", folder, 200.0)
    said = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    assert said["refused"].startswith("make a raw packet queue pair on rxe0: Failed to create QP."), output
    assert "raw packets need an mlx5" in said["refused"]
    assert said["pages"] == str(2 << 20)
    assert said["datagram"] == "True"
    # Number, type and state were found to agree before the kind of queue pair was looked at.
    assert "it is no raw packet queue pair" in said["hand-over, as it is"]
    assert "its number is" in said["hand-over, another number"]
    assert "its number is" in said["hand-over, beside it"]
    assert "take over transmit queue 0 from pyverbs" in said["hand-over, a Python object"]
    assert said["events"] == "True"
    assert "closed" in output.splitlines()
