# SPDX-License-Identifier: Apache-2.0
"""How two workers scale against one: python -m bench.scaling [--rounds N] [--out FILE]

Each worker drives both ends of its rings itself (tests/gates/scaling.h), so two CPUs are enough and no generator limits
the switch. Single rounds of one and of two workers take turns (A B B A) and medians are compared. Needs CPUs 0 and 1 to
itself, and: cmake --preset gates && cmake --build --preset gates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "build/gates/gate"
SITUATIONS = (
    "ports of their own",
    "queues of their own",
    "one transmit queue",
    "one transmit queue, reserved",  # tests/gates/reserve_commit.h, as is the next
    "one transmit queue, reserved unseen",
)


def frames_per_second(situation: str, workers: int, milliseconds: int) -> float:
    command = [str(PROGRAM), "rate", situation, str(workers), str(milliseconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return float(done.stdout)


def measure(situation: str, rounds: int, milliseconds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {"1": [], "2": []}
    for number in range(rounds):
        for workers in ("1", "2") if number % 2 == 0 else ("2", "1"):
            rates[workers].append(frames_per_second(situation, int(workers), milliseconds))
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--milliseconds", type=int, default=300, help="of a round")
    parser.add_argument("--out", type=Path, help="write every round as JSON")
    options = parser.parse_args()
    if not PROGRAM.exists():
        print(f"{PROGRAM} is missing: cmake --preset gates && cmake --build --preset gates", file=sys.stderr)
        return 1
    results = {}
    print(f"{'two workers with':36} {'1 worker':>10} {'2 workers':>10} {'ratio':>6}   lowest and highest round")
    for situation in SITUATIONS:
        try:
            rates = measure(situation, options.rounds, options.milliseconds)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        one, two = (statistics.median(rates[workers]) / 1e6 for workers in ("1", "2"))
        spread = ", ".join(f"{min(rates[n]) / 1e6:.2f}..{max(rates[n]) / 1e6:.2f}" for n in ("1", "2"))
        print(f"{situation:36} {one:8.2f} M {two:8.2f} M {two / one:6.2f}   {spread}", flush=True)
        results[situation] = rates
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
