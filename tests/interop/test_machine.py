# SPDX-License-Identifier: Apache-2.0
"""The machine that other tests run their scripts on keeps what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop import needs
from tests.interop.machine import Machine, MachineError

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

SCRIPT = """
echo "kernel $(uname -r)"
echo "python $(command -v python)"
python -c 'import switch._core; print("core", switch._core.__name__)'
test -c /dev/net/tun && echo tun
touch {checkout}/left-behind && echo written
echo shared >{folder}/from-inside
exit 7
"""


def test_a_script_sees_the_hosts_files_on_another_kernel_and_leaves_nothing(folder: Path) -> None:
    left = needs.ROOT / "left-behind"
    machine = Machine(["tun"])
    done = machine.finish(machine.start(SCRIPT.format(checkout=needs.ROOT, folder=folder), folder), folder, 150)
    said = dict(line.partition(" ")[::2] for line in done.output.splitlines())
    assert said["kernel"] == machine.kernel.name.removeprefix("vmlinuz-"), done.output
    assert said["python"] == str(Path(sys.executable).parent / "python")
    assert {"tun", "written"} <= said.keys()
    assert said["core"] == "switch._core"
    assert (folder / "from-inside").read_text() == "shared\n"
    assert not left.exists()
    assert done.status == 7


def test_a_machine_that_dies_is_not_taken_for_one_that_ended(folder: Path) -> None:
    machine = Machine([])
    killed = machine.start("sleep 1000", folder)
    killed.kill()
    with pytest.raises(MachineError, match="ended before its script"):
        machine.finish(killed, folder, 10)
    assert subprocess.run(["kill", "-0", str(killed.pid)], check=False, capture_output=True).returncode != 0
