# SPDX-License-Identifier: Apache-2.0
"""A kernel of a distribution beside this machine's: what the machine that runs it promises, AF_XDP where it knows less,
the kernel's own tunnels, and software RDMA.

One boot for all: the parts run side by side, each with its own output and status.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.inside.afxdp import TUNNELS
from tests.interop.machine import Done, Machine, MachineError
from tests.support.verbs_standin import need_pyverbs

pytestmark = [pytest.mark.interop, pytest.mark.emulated, pytest.mark.timeout(300)]

MODULES = ("tun", "veth", "geneve", "ip_gre", "ipip", "rdma_rxe", "ib_uverbs", "dummy", "crc32_generic")
STATUS = 7
# Python compiles nothing here and imports much: two CPUs have work for two parts.
SCRIPT = """
for part in afxdp rdma look; do
  (. {folder}/$part.sh >{folder}/$part.out 2>&1; echo $? >{folder}/$part.status) &
done
wait
echo done
exit {status}
"""
PARTS = {
    "afxdp": "python -m tests.interop.inside.afxdp",
    "rdma": "python -m tests.interop.rxe_script",
    "look": """
echo "kernel $(uname -r)"
echo "python $(command -v python)"
python -c 'import switch._core; print("core", switch._core.__name__)'
test -c /dev/net/tun && echo tun
touch {checkout}/left-behind && echo written
echo shared >{folder}/from-inside
""",
}


@dataclass
class Seen:
    machine: Machine
    folder: Path
    done: Done

    def output(self, part: str) -> str:
        """What a part said; it must have ended with 0."""
        said = (self.folder / f"{part}.out").read_text()
        assert (self.folder / f"{part}.status").read_text().strip() == "0", said[-8000:]
        return said


@pytest.fixture(scope="module")
def seen(module_folder: Path) -> Seen:
    need_pyverbs(sys.executable)
    for program in ("rdma", "ip"):
        needs.program(program, "iproute2")
    machine = Machine(MODULES)
    for name, text in PARTS.items():
        (module_folder / f"{name}.sh").write_text(text.format(checkout=needs.ROOT, folder=module_folder))
    script = SCRIPT.format(folder=module_folder, status=STATUS)
    return Seen(machine, module_folder, machine.finish(machine.start(script, module_folder), module_folder, 250))


def test_a_script_sees_the_hosts_files_on_another_kernel_and_leaves_nothing(seen: Seen) -> None:
    said = dict(line.partition(" ")[::2] for line in seen.output("look").splitlines())
    assert said["kernel"] == seen.machine.kernel.name.removeprefix("vmlinuz-"), said
    assert said["python"] == str(Path(sys.executable).parent / "python")
    assert {"tun", "written"} <= said.keys()
    assert said["core"] == "switch._core"
    assert (seen.folder / "from-inside").read_text() == "shared\n"
    assert not (needs.ROOT / "left-behind").exists()
    assert seen.done == Done(STATUS, "done\n")


def test_a_machine_that_dies_is_not_taken_for_one_that_ended(folder: Path) -> None:
    machine = Machine([])
    killed = machine.start("sleep 1000", folder)
    killed.kill()
    with pytest.raises(MachineError, match="ended before its script"):
        machine.finish(killed, folder, 10)
    assert subprocess.run(["kill", "-0", str(killed.pid)], check=False, capture_output=True).returncode != 0


def test_a_kernel_without_multi_buffer_carries_frames_of_one_buffer(seen: Seen) -> None:
    said = json.loads(seen.output("afxdp").partition("SAID ")[2])
    assert said["facts"]["xdp"] == "in the driver", said
    assert said["facts"]["multi_buffer"].startswith("no"), said
    assert said["order"]
    assert "ip link set up0 mtu 1774" in said["refused"]


@pytest.mark.parametrize("tunnel", ["without the repair checksums are wrong", *TUNNELS])
def test_checksums_inside_a_kernels_tunnel_are_finished(seen: Seen, tunnel: str) -> None:
    """TCP both ways at once and datagrams of many sizes, with no checksum that either host found wrong."""
    assert f"ok {tunnel}" in seen.output("afxdp").splitlines()


def test_what_software_rdma_can_show_of_a_verbs_port(seen: Seen) -> None:
    """libibverbs, pyverbs and the kernel's RDMA as they are: see rxe_script.py."""
    output = seen.output("rdma")
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
