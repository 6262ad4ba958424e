# SPDX-License-Identifier: Apache-2.0
"""How far the switch's CPU and the load's are from each other, which no virtual machine says and hosts change.

CPUs of one last-level cache pass a line on several times as fast as memory does, others take as long as memory. Rates
differ by several times between the two, so rounds of one sort are never compared with rounds of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.generator import core
from bench.switches import LOAD_CPU, SWITCH_CPU

NEAR, FAR, MOVED = "near", "far", "moved"
LEAST_ROUNDS = 3  # of one sort, for a number of its own
NEAR_ROUNDS = 5  # wanted, of the rounds that were asked for or more


def measure() -> str:
    """NEAR or FAR, at this moment. Nothing else may run on the two CPUs."""
    line = core().line_ns(SWITCH_CPU, LOAD_CPU)
    memory = core().memory_line_ns()
    return FAR if memory and line >= memory / 2 else NEAR


def common(distances: Mapping[str, Sequence[str]]) -> list[str]:
    """By round: where the CPUs were in the turns of all switches, MOVED if not always the same."""
    turns = zip(*distances.values(), strict=True)
    return [turn[0] if len(set(turn)) == 1 else MOVED for turn in turns]


def rounds_of(rounds: Sequence[str], distance: str) -> list[int]:
    return [number for number, found in enumerate(rounds) if found == distance]


def sort_that_counts(rounds: Sequence[str]) -> str:
    """NEAR if there are enough rounds of it, else FAR if there are, else MOVED: all rounds together."""
    for distance in (NEAR, FAR):
        if len(rounds_of(rounds, distance)) >= LEAST_ROUNDS:
            return distance
    return MOVED
