# SPDX-License-Identifier: Apache-2.0
"""Taps through vhost-net, on a machine whose kernel has it: frame by frame, and as switchd with stations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.machine import Done, Machine

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

TEST_PORT = needs.ROOT / "build/asan/test_port"
SCRIPT = """
setarch -R {test_port} --no-colors --test-case='vhost-net:*' >{folder}/test_port.log 2>&1
echo $? >{folder}/test_port.status
python -m tests.interop.inside.vhost_net {folder}
"""


@pytest.fixture(scope="module")
def machine(module_folder: Path) -> tuple[Done, Path]:
    """One boot for both tests; a machine is slow to start."""
    needs.root("network namespaces are made there")
    for name, package in (("ip", "iproute2"), ("ss", "iproute2"), ("iperf3", "iperf3")):
        needs.program(name, package)
    if not TEST_PORT.exists():
        needs.lacking("the C++ tests are not built", "cmake --preset asan && cmake --build --preset asan")
    here = Machine(["tun", "vhost_net", "veth"])
    script = SCRIPT.format(test_port=TEST_PORT, folder=module_folder)
    return here.finish(here.start(script, module_folder), module_folder, 240), module_folder


def test_frames_pass_vhost_net_unchanged(machine: tuple[Done, Path]) -> None:
    """tests/cpp/port/tap_vhost_test.cc, the part that skips where there is no vhost-net, under ASan and UBSan."""
    _, folder = machine
    said = (folder / "test_port.log").read_text()
    assert (folder / "test_port.status").read_text().strip() == "0", said[-4000:]
    assert "skipped:" not in said, said


def test_stations_behind_vhost_net_reach_all_others(machine: tuple[Done, Path]) -> None:
    """tests/interop/inside/vhost_net.py: TCP, UDP, checksums, counters, ports that come and go."""
    done, folder = machine
    log = folder / "switchd.log"
    assert done.status == 0, f"{done.output[-4000:]}\n{log.read_text()[-2000:] if log.exists() else ''}"
    for line in ("every frame is accounted for", "kicks", "came and went under traffic", "done"):
        assert line in done.output
