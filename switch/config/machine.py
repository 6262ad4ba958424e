# SPDX-License-Identifier: Apache-2.0
"""What a configuration may ask about the machine it will run on: CPUs and groups. Tests bring their own."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from dataclasses import dataclass


def _gid_of(group: str) -> int | None:
    """The number of a group given by name or by number; None when there is no such group."""
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


@dataclass(frozen=True, slots=True)
class Machine:
    """cpus: where threads of this process may run; None: do not check. gid_of: group -> number or None."""

    cpus: frozenset[int] | None
    gid_of: Callable[[str], int | None] = _gid_of

    @classmethod
    def here(cls) -> Machine:
        return cls(frozenset(os.sched_getaffinity(0)))

    def default_cpu(self) -> int:
        """Where the one worker runs when the file names none: the last CPU, far from where the system is busiest."""
        return max(self.cpus) if self.cpus else 0


ANY_MACHINE = Machine(None, lambda group: int(group) if group.isascii() and group.isdigit() else 0)
"""Accepts every CPU and group: for a file that is meant for another machine."""
