# SPDX-License-Identifier: Apache-2.0
"""Measure cases on switches, print one line per switch, keep everything in a JSON file.

python -m bench.run --case 64-split --switch ours,ovs,testpmd --rounds 3 --seconds 2
python -m bench.run --case '64-*' --switch ours=/src/before,ours=/src/after
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import cases, machine
from bench.generator import core
from bench.measure import Outcome, measure_rate
from bench.numbers import median, ratios
from bench.process import BenchError
from bench.switches import LOAD_CPU, make_switch


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("--case", "--cases", dest="cases", action="append", default=[], metavar="PATTERN",
                        help="names or patterns, separated by commas; default: all (--list)")  # fmt: skip
    parser.add_argument("--switch", "--switches", dest="switches", default="ours,ovs,testpmd", metavar="LIST",
                        help="of ours, ours=CHECKOUT, ovs, testpmd; the first is compared with the others")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="how often each switch has its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, without warming up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    parser.add_argument("--list", action="store_true", help="show the cases that there are and end")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or not 0.05 <= given.seconds <= 600:
        parser.error("--rounds is 1 at least, --seconds 0.05 to 600")
    patterns = [part for text in given.cases for part in text.split(",") if part]
    try:
        given.cases = cases.choose(patterns or ["*"])
    except cases.CaseError as error:
        parser.error(str(error))
    given.switches = [part for part in given.switches.split(",") if part]
    if not given.switches:
        parser.error("--switch is empty")
    return given


def line(label: str, outcome: Outcome, first: Outcome) -> str:
    cycles = f"{median(outcome.cycles):6.1f}" if outcome.cycles else "     -"
    ratio = median(ratios(first.mpps, outcome.mpps)) if outcome is not first else 1.0
    least, most = min(outcome.mpps), max(outcome.mpps)
    return (
        f"  {label:<20} {median(outcome.mpps):8.3f} Mpps ({least:.3f} to {most:.3f})  x{ratio:5.2f}  "
        f"{cycles} cycles/frame  generator {median(outcome.generator_busy):4.0%} busy  loss {median(outcome.loss):.2%}"
        + (f"  {outcome.still_noisy} NOISY" if outcome.still_noisy else "")
    )


def merge(file: Path, facts: dict[str, Any], results: dict[str, Any]) -> None:
    """Results of this run replace older ones of the same cases."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known.update(facts)
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
    with machine.huge_pages():
        for name in given.cases:
            case = cases.parse_case(name)
            able = [switch for switch in switches if case.pairs * case.ports <= switch.many_macs]
            print(name, flush=True)
            try:
                outcomes = measure_rate(case, able, given.rounds, given.seconds)
            except BenchError as error:
                print(f"  {error}", file=sys.stderr)
                failed += 1
                continue
            first = next(iter(outcomes.values()))
            for label, outcome in outcomes.items():
                print(line(label, outcome, first), flush=True)
            if given.json:
                facts = {"machine": machine.describe(tsc_hz), "measured": time.strftime("%Y-%m-%d")}
                merge(given.json, facts, {name: {label: outcome.as_dict() for label, outcome in outcomes.items()}})
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse_arguments(arguments)
    if given.list:
        print("\n".join(given.cases))
        return 0
    try:
        return run(given)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
