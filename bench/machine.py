# SPDX-License-Identifier: Apache-2.0
"""The machine: what it is, huge pages for the time of the run, and who else used its CPUs meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError, Child

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
HUGE_PAGES_WANTED = 1280  # 2 MB each: OVS 1 GB and more, testpmd 256 MB, guests and switchd the rest
FOREIGN_SHARE = 0.03  # of a CPU: more, and a round is measured again
STEAL_SHARE = 0.01


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def huge_pages(wanted: int = HUGE_PAGES_WANTED) -> Iterator[None]:
    """Have so many free 2 MB pages, and the old number again in the end. The peers do not run without."""
    before = int(HUGE_PAGES.read_text())
    missing = wanted - _meminfo("HugePages_Free")
    try:
        if missing > 0:
            try:
                HUGE_PAGES.write_text(str(before + missing))
            except OSError as error:
                raise BenchError(
                    f"the peers need {wanted} free huge pages of 2 MB, {missing} more than there are, and "
                    f"vm.nr_hugepages cannot be set ({error.strerror}): run as root, or set it before"
                ) from error
        if _meminfo("HugePages_Free") < wanted:
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
    busy: int  # ticks of all CPUs, ours and others'
    steal: int
    known: int  # of the processes that belong to the measurement


def cpu_times(children: Sequence[Child]) -> CpuTimes:
    user, nice, system, _idle, _wait, irq, soft, steal = (
        int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    mine = os.times()
    known = round((mine.user + mine.system) * os.sysconf("SC_CLK_TCK")) + sum(child.ticks() for child in children)
    return CpuTimes(user + nice + system + irq + soft, steal, known)


@dataclass(frozen=True, slots=True)
class Noise:
    foreign: float  # CPUs that others used
    steal: float  # CPUs that the hypervisor took

    @property
    def too_much(self) -> bool:
        return self.foreign > FOREIGN_SHARE or self.steal > STEAL_SHARE


def noise(before: CpuTimes, after: CpuTimes, seconds: float) -> Noise:
    ticks = seconds * os.sysconf("SC_CLK_TCK")
    foreign = (after.busy - before.busy) - (after.known - before.known)
    return Noise(max(0.0, foreign / ticks), (after.steal - before.steal) / ticks)
