# SPDX-License-Identifier: Apache-2.0
"""One case on several switches, interleaved: A B C, C B A. All but the switch whose turn it is are stopped.

Turns are short and many: a virtual machine's speed changes from second to second by more than what is to be measured,
so a switch is compared with another in the same second, and the median of all such comparisons counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from bench import distance, machine
from bench.cases import Case
from bench.generator import Generator, Interval, interval
from bench.numbers import median, spread
from bench.process import BenchError
from bench.switches import Needs, Switch

FIRST_WARM_UP = 1.0  # flows are learned, caches filled
WARM_UP = 0.1
SETTLE = 0.02  # after asking the switch for its counters
TRIES = 2  # of a round, if the first was noisy


@dataclass
class Outcome:
    """Of one switch in one case; one entry a round."""

    mpps: list[float] = field(default_factory=list)
    gbits: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # share of the frames sent
    cycles: list[float] = field(default_factory=list)  # of the switch's data path, per frame
    generator_busy: list[float] = field(default_factory=list)
    steal: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)  # CPU time that others took from switch and load
    noisy: int = 0  # rounds that were measured again
    distance: list[str] = field(default_factory=list)  # of the two CPUs: distance.py
    still_noisy: int = 0  # rounds that stayed noisy and count all the same

    def of_rounds(self, numbers: Sequence[int]) -> Outcome:
        """As if there had been these rounds only; how many were noisy is told of all."""

        def chosen(values: list[float]) -> list[float]:
            return [values[number] for number in numbers if number < len(values)]

        return replace(
            self, mpps=chosen(self.mpps), gbits=chosen(self.gbits), loss=chosen(self.loss), cycles=chosen(self.cycles),
            generator_busy=chosen(self.generator_busy), steal=chosen(self.steal), foreign=chosen(self.foreign),
            distance=[self.distance[number] for number in numbers],
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        def rounded(values: list[float], digits: int) -> list[float]:
            return [round(value, digits) for value in values]

        return {
            "mpps": round(median(self.mpps), 3),
            "mpps_rounds": rounded(self.mpps, 3),
            "spread": round(spread(self.mpps), 4),
            "gbits": round(median(self.gbits), 2),
            "loss": round(median(self.loss), 6) if self.loss else None,
            "cycles": round(median(self.cycles), 1) if self.cycles else None,
            "generator_busy": round(median(self.generator_busy), 3) if self.generator_busy else None,
            "steal": round(median(self.steal), 4),
            "foreign": round(median(self.foreign), 4),
            "noisy_rounds": self.noisy,
            "still_noisy_rounds": self.still_noisy,
        }


def needs_of(case: Case) -> Needs:
    return Needs(
        ports=case.all_ports,
        macs=case.pairs * case.ports,
        frame_bytes=case.size,
        offloads=case.gso != 0,
        control_apart=case.kind == "disturb",
    )


@contextmanager
def on_switches(
    case: Case,
    switches: Sequence[Switch],
    latency: bool = False,
    one_way: bool = False,
    others: Mapping[str, Case] | None = None,
) -> Iterator[dict[str, Generator]]:
    """Every switch started and paused, with the case's guests connected and inactive. `others`: by label, the case of a
    switch that has another one."""
    with ExitStack() as house:
        generators: dict[str, Generator] = {}
        for switch in switches:
            its = (others or {}).get(switch.label, case)
            switch.start(needs_of(its))
            house.callback(switch.stop)
            generator = Generator(its, switch, latency, one_way)
            house.callback(generator.close)
            generator.connect()
            generators[switch.label] = generator
            switch.pause()
        # A paused process does not see that its guests leave, and a guest must not outlive its switch.
        for switch in switches:
            house.callback(switch.resume)
        yield generators


@dataclass(frozen=True, slots=True)
class Window:
    load: Interval
    noise: machine.Noise
    cycles: float | None


def measure_window(switch: Switch, generator: Generator, seconds: float) -> Window:
    """`generator` runs and has warmed up."""
    busy_before = switch.busy()
    time.sleep(SETTLE)
    times_before = machine.cpu_times(switch.children)
    before = generator.snapshot()
    time.sleep(seconds)
    after = generator.snapshot()
    times_after = machine.cpu_times(switch.children)
    busy_after = switch.busy()
    load = interval(before, after)
    cycles = None
    if busy_before and busy_after and busy_after.frames > busy_before.frames:
        cycles = (busy_after.cycles - busy_before.cycles) / (busy_after.frames - busy_before.frames)
    return Window(load, machine.noise(times_before, times_after, load.seconds), cycles)


def measure_rate(
    case: Case, switches: Sequence[Switch], rounds: int, seconds: float, others: Mapping[str, Case] | None = None
) -> dict[str, Outcome]:
    """As many frames as go, both ways. More rounds than `rounds`, at most twice as many, if too few were NEAR."""
    outcomes = {switch.label: Outcome() for switch in switches}
    with on_switches(case, switches, others=others) as generators:
        for number in range(2 * rounds):
            near = distance.rounds_of(distance.common({k: v.distance for k, v in outcomes.items()}), distance.NEAR)
            if number >= rounds and len(near) >= min(rounds, distance.NEAR_ROUNDS):
                break
            # A B C, then C B A: what drifts hits the first and the last alike.
            for switch in switches if number % 2 == 0 else reversed(switches):
                generator = generators[switch.label]
                outcome = outcomes[switch.label]
                before = distance.measure()
                switch.resume()
                generator.run()
                time.sleep(FIRST_WARM_UP + case.pairs / 200_000 if number == 0 else WARM_UP)
                for _ in range(TRIES):
                    window = measure_window(switch, generator, seconds)
                    if not window.noise.too_much:
                        break
                    outcome.noisy += 1
                else:
                    outcome.still_noisy += 1
                generator.rest()
                switch.pause()
                _note(switch, outcome, window)
                outcome.distance.append(before if distance.measure() == before else distance.MOVED)
    return outcomes


def _note(switch: Switch, outcome: Outcome, window: Window) -> None:
    load = window.load
    if not load.received:
        raise BenchError(f"{switch.label}: no frame arrived")
    outcome.mpps.append(load.received / load.seconds / 1e6)
    outcome.gbits.append(load.received_bytes * 8 / load.seconds / 1e9)
    outcome.loss.append(max(0.0, 1 - load.received / load.sent) if load.sent else 0.0)
    outcome.generator_busy.append(load.busy_share)
    outcome.steal.append(window.noise.steal)
    outcome.foreign.append(window.noise.foreign)
    if window.cycles is not None:
        outcome.cycles.append(window.cycles)
