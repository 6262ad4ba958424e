# SPDX-License-Identifier: Apache-2.0
"""The machine: what it is, huge pages for the time of the run, and who else used its CPUs meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError, Child, ThreadTimes, thread_times

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
# 2 MB each: OVS takes 1 GB and more, testpmd 256 MB, guests and switchd the rest. The peers do not run without.
PAGES_WITH_PEERS = 1280
PAGES_ALONE = 128
FOREIGN_SHARE = 0.03  # of a CPU: more, and a round is measured again
STEAL_SHARE = 0.06  # one tick of 10 ms in a window of 200 ms is no news on a virtual machine


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def huge_pages(wanted: int, required: bool) -> Iterator[None]:
    """Have so many free 2 MB pages if that can be, and the old number again in the end."""
    before = int(HUGE_PAGES.read_text())
    missing = wanted - _meminfo("HugePages_Free")
    try:
        if missing > 0:
            try:
                HUGE_PAGES.write_text(str(before + missing))
            except OSError as error:
                if not required:
                    print(
                        f"bench: no huge pages ({error.strerror}); switchd and its guests run without", file=sys.stderr
                    )
                    yield
                    return
                raise BenchError(
                    f"the peers need {wanted} free huge pages of 2 MB, {missing} more than there are, and "
                    f"vm.nr_hugepages cannot be set ({error.strerror}): run as root, or set it before"
                ) from error
        if required and _meminfo("HugePages_Free") < wanted:
            raise BenchError(f"the kernel has no {wanted} huge pages of 2 MB to give: memory is full or in pieces")
        yield
    finally:
        if missing > 0:
            with contextlib.suppress(OSError):
                HUGE_PAGES.write_text(str(before))


def describe(tsc_hz: int) -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo").read_text()

    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
        return found[1] if found else "?"

    flags = field("flags").split()
    vectors = [flag for flag in ("avx2", "avx512f") if flag in flags]
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "?")
    return {
        "cpu": f"{field('model name')} (family {field('cpu family')}, model {field('model')})",
        "vectors": ", ".join(vectors) or "none",
        "tsc": f"{tsc_hz / 1e9:.3f} GHz",
        "cpus": str(os.cpu_count()),
        "virtual": "yes" if "hypervisor" in flags else "no",
        "memory": f"{_meminfo('MemTotal') >> 20} GB",
        "kernel": platform.release(),
        "system": release,
    }


@dataclass(frozen=True, slots=True)
class CpuTimes:
    threads: dict[int, ThreadTimes]  # of the processes that belong to the measurement
    steal_ticks: int


def cpu_times(children: Sequence[Child]) -> CpuTimes:
    steal = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    threads = thread_times(os.getpid())
    for child in children:
        threads |= thread_times(child.pid)
    return CpuTimes(threads, steal)


@dataclass(frozen=True, slots=True)
class Noise:
    foreign: float  # CPUs that polling threads waited for: somebody else had them
    steal: float  # CPUs that the hypervisor took, in steps of a clock tick

    @property
    def too_much(self) -> bool:
        return self.foreign > FOREIGN_SHARE or self.steal > STEAL_SHARE


def noise(before: CpuTimes, after: CpuTimes, seconds: float) -> Noise:
    waited = 0
    for thread, end in after.threads.items():
        start = before.threads.get(thread, ThreadTimes(0, 0))
        ran_ns, waited_ns = end.run_ns - start.run_ns, end.wait_ns - start.wait_ns
        if ran_ns + waited_ns > seconds / 2 * 1e9:  # wants a CPU all the time
            waited += waited_ns
    steal = (after.steal_ticks - before.steal_ticks) / os.sysconf("SC_CLK_TCK")
    return Noise(waited / 1e9 / seconds, steal / seconds)
