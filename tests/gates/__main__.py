# SPDX-License-Identifier: Apache-2.0
"""Instruction gates: python -m tests.gates check | update | show [PATH...]

check   count every path and fail where one takes more than its limit in limits.json, or where workers share lines
update  make what is counted now the limits, and print what changed
show    the functions of the named paths (all if none is named), instructions per frame
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.gates import limits
from tests.gates.analyse import Run, count
from tests.gates.sharing import sharing_faults

PROGRAM = Path(__file__).resolve().parents[2] / "build/gates/gate"


def table(run: Run, before: dict[str, limits.Cost]) -> str:
    lines = [f"{'path':34} {'limit':>8} {'now':>8} {'calls':>6} {'locked':>6}"]
    for name, cost in limits.costs_of(run).items():
        then = f"{before[name].instructions:8.1f}" if name in before else f"{'-':>8}"
        lines.append(f"{name:34} {then} {cost.instructions:8.1f} {cost.calls:6.2f} {cost.locked:6}")
    return "\n".join(lines)


def check(run: Run, program: Path) -> int:
    made_with, before = limits.load()
    print(table(run, before))
    alike = made_with == run.made_with
    if not alike:
        print(f"limits were set with {made_with}, this is {run.made_with}: {limits.OTHER_SHARE:.0%} more is let pass")
    dear = limits.faults(run.paths, before, alike)
    shared = sharing_faults(program)
    for fault in dear + shared:
        print(f"gate: {fault}", file=sys.stderr)
    if dear:
        print("gate: if the cost is meant, set new limits with: python -m tests.gates update", file=sys.stderr)
    return 1 if dear or shared else 0


def update(run: Run) -> int:
    before = limits.load()[1] if limits.FILE.exists() else {}
    print(table(run, before))
    limits.save(run)
    return 0


def show(run: Run) -> int:
    for name, cost in limits.costs_of(run).items():
        print(f"{name}: {cost.instructions}")
        for function, share in cost.functions.items():
            print(f"{share:10.2f}  {function}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["check", "update", "show"])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    options = parser.parse_args()
    if options.paths and options.verb != "show":
        parser.error("only show takes paths: limits are kept for all of them together")
    if not options.program.exists():
        print(
            f"gate: {options.program} is missing: cmake --preset gates && cmake --build --preset gates", file=sys.stderr
        )
        return 1
    try:
        run = count(options.program, *options.paths)
        if options.verb == "check":
            return check(run, options.program)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return {"update": update, "show": show}[options.verb](run)


if __name__ == "__main__":
    sys.exit(main())
