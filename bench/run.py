# SPDX-License-Identifier: Apache-2.0
"""Measure cases on switches, print one line per switch, keep everything in a JSON file.

python -m bench.run --case 64-split --switch ours,ovs,testpmd --rounds 3 --seconds 2
python -m bench.run --case '64-*' --switch ours=/src/before,ours=/src/after
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import cases, distance, machine
from bench.cases import Case
from bench.disturb import measure_disturbed
from bench.generator import core
from bench.idle import measure_idle
from bench.latency import Point, measure_latency
from bench.loop import measure_loop
from bench.measure import Outcome, measure_rate, needs_of
from bench.numbers import median, ratios
from bench.process import BenchError
from bench.switches import LOAD_CPU, Ours, Switch, make_switch

PLAIN = "plain"  # label of our switch with the plain case


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("--case", "--cases", dest="cases", action="append", default=[], metavar="PATTERN",
                        help="names or patterns, separated by commas; default: all (--list)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few cases instead of all")
    parser.add_argument("--switch", "--switches", dest="switches", default="ours,ovs,testpmd", metavar="LIST",
                        help="of ours, ours=CHECKOUT, ovs, testpmd; the first is compared with the others")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=9, help="how often each switch has its turn")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a round, without warming up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    parser.add_argument("--list", action="store_true", help="show the cases that there are and end")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or not 0.05 <= given.seconds <= 600:
        parser.error("--rounds is 1 at least, --seconds 0.05 to 600")
    patterns = [part for text in given.cases for part in text.split(",") if part]
    try:
        given.cases = cases.choose(patterns or (cases.QUICK if given.quick else ["*"]))
    except cases.CaseError as error:
        parser.error(str(error))
    given.switches = [part for part in given.switches.split(",") if part]
    if not given.switches:
        parser.error("--switch is empty")
    return given


def rate_line(label: str, outcome: Outcome, first: Outcome) -> str:
    cycles = f"{median(outcome.cycles):6.1f}" if outcome.cycles else "     -"
    ratio = median(ratios(first.mpps, outcome.mpps)) if outcome is not first else 1.0
    least, most = min(outcome.mpps), max(outcome.mpps)
    text = (
        f"  {label:<20} {median(outcome.mpps):8.3f} Mpps ({least:.3f} to {most:.3f})  x{ratio:5.2f}  "
        f"{cycles} cycles/frame"
    )
    if outcome.generator_busy:
        text += f"  generator {median(outcome.generator_busy):4.0%} busy  loss {median(outcome.loss):.2%}"
    if outcome.still_noisy:
        text += (
            f"  {outcome.still_noisy} NOISY (others {median(outcome.foreign):.0%}, steal {median(outcome.steal):.0%})"
        )
    return text


def latency_line(label: str, load: str, point: Point) -> str:
    shown = point.as_dict()
    times = " / ".join(f"{shown[name]:.2f}" for name in ("p50", "p99", "p999"))
    return (
        f"  {label:<20} {load:<12} {shown['mpps']:7.3f} Mpps  p50 / p99 / p99.9  {times} us  loss {shown['loss']:.3%}"
        + (f"  {point.still_noisy} NOISY" if point.still_noisy else "")
    )


def with_plain(case: Case, switches: Sequence[Switch]) -> tuple[list[Switch], dict[str, Case]]:
    """Our switch once more, for the plain case beside one that is to be told against it; and the case by its label."""
    plain, ours = case.plain, switches[0]
    if plain is None or not isinstance(ours, Ours):
        return list(switches), {}
    return [ours, Ours(PLAIN, ours.checkout, ours.tsc_hz), *switches[1:]], {PLAIN: plain}


def measure_rates(case: Case, switches: Sequence[Switch], rounds: int, seconds: float) -> dict[str, Any]:
    if case.kind == "rate":
        contenders, others = with_plain(case, switches)
        outcomes = measure_rate(case, contenders, rounds, seconds, others)
    else:
        outcomes = measure_loop(case, switches, rounds, seconds)
    return keep_by_distance(outcomes)


def keep_by_distance(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What the rounds gave that count, and those with far CPUs for themselves if they are not the same."""
    rounds_were = distance.common({label: outcome.distance for label, outcome in outcomes.items()})
    kept = keep_rates(outcomes, distance.rounds_of(rounds_were, distance.sort_that_counts(rounds_were)))
    if rounds_were:
        kept["distance"] = distance.sort_that_counts(rounds_were)
        kept["rounds_by_distance"] = {sort: rounds_were.count(sort) for sort in sorted(set(rounds_were))}
    far = distance.rounds_of(rounds_were, distance.FAR)
    if kept.get("distance") == distance.NEAR and len(far) >= distance.LEAST_ROUNDS:
        print(f"  far, {len(far)} rounds:", flush=True)
        for label, values in keep_rates(outcomes, far).items():
            kept[label]["far"] = values
    return kept


def keep_rates(outcomes: Mapping[str, Outcome], numbers: Sequence[int]) -> dict[str, Any]:
    """By switch: what these rounds gave (none: all rounds), printed, and as it is kept."""
    if numbers:
        outcomes = {label: outcome.of_rounds(numbers) for label, outcome in outcomes.items()}
    kept: dict[str, Any] = {}
    first = next(iter(outcomes.values()))
    for label, outcome in outcomes.items():
        print(rate_line(label, outcome, first), flush=True)
        kept[label] = outcome.as_dict()
        if outcome is not first:
            kept[label]["ratio"] = round(median(ratios(first.mpps, outcome.mpps)), 3)
        if label == PLAIN:
            kept[label]["cycles_ratio"] = round(median(ratios(first.cycles, outcome.cycles)), 3)
    return kept


def measure(case: Case, switches: Sequence[Switch], rounds: int, seconds: float) -> dict[str, Any]:
    """What the case asks for: printed, and as it is kept."""
    able = [switch for switch in switches if switch.able(needs_of(case))]
    ours = [switch for switch in able if isinstance(switch, Ours)]
    if case.kind in ("rate", "loop"):
        return measure_rates(case, able, rounds, seconds)
    kept: dict[str, Any] = {}
    if case.kind == "latency":
        for label, points in measure_latency(case, able, rounds, seconds).items():
            for load, point in points.items():
                print(latency_line(label, load, point), flush=True)
            kept[label] = {load: point.as_dict() for load, point in points.items()}
    elif case.kind == "idle":
        for switch in ours:
            kept[switch.label] = measure_idle(case, switch, rounds, seconds).as_dict()
            print(f"  {switch.label:<20} {kept[switch.label]}", flush=True)
    else:
        for switch in ours:
            disturbed = measure_disturbed(case, switch, max(2.0, seconds))
            kept[switch.label] = {name: one.as_dict() for name, one in disturbed.items()}
            for name, one in kept[switch.label].items():
                print(f"  {switch.label:<20} {name}: {one}", flush=True)
    return kept


def merge(file: Path, facts: dict[str, Any], results: dict[str, Any]) -> None:
    """Results of this run replace older ones of the same cases."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    versions = {**known.get("versions", {}), **facts.get("versions", {})}
    known.update(facts, versions=versions)
    known.setdefault("cases", {}).update(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    partial.replace(file)


def run(given: argparse.Namespace) -> int:
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchError("one CPU for the switch and one for the load are needed, and there is one in all")
    tsc_hz = core().tsc_hz()
    switches = [make_switch(text, tsc_hz) for text in given.switches]
    os.sched_setaffinity(0, {LOAD_CPU})
    failed = 0
    alone = all(isinstance(switch, Ours) for switch in switches)
    with machine.huge_pages(machine.PAGES_ALONE if alone else machine.PAGES_WITH_PEERS, required=not alone):
        for name in given.cases:
            print(name, flush=True)
            try:
                kept = measure(cases.parse_case(name), switches, given.rounds, given.seconds)
            except BenchError as error:
                print(f"  {error}", file=sys.stderr)
                failed += 1
                continue
            if given.json:
                kept["measured"] = time.strftime("%Y-%m-%d %H:%M")
                kept["rounds"], kept["seconds"] = given.rounds, given.seconds
                facts = {"machine": machine.describe(tsc_hz)}
                versions = {switch.label: switch.version() for switch in switches}
                kept["build"] = versions.get("ours", "")  # a file may be filled in parts
                merge(given.json, {**facts, "versions": versions}, {name: kept})
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse_arguments(arguments)
    if given.list:
        print("\n".join(given.cases))
        return 0
    # An end by `kill` or a closed terminal takes the same way out as Ctrl-C: nothing stays behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(given)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
