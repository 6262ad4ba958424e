# SPDX-License-Identifier: Apache-2.0
"""How two workers scale against one: python -m bench.scaling [--bytes N] [--rounds N] [--out FILE]

Each worker drives both ends of its rings itself (tests/gates/scaling.h), so two CPUs are enough and no generator limits
the switch. Single rounds of all situations, of one and of two workers, take turns and medians are compared. Needs CPUs
0 and 1 to itself, and: cmake --preset gates && cmake --build --preset gates.
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
)


def frames_per_second(situation: str, workers: int, frame_bytes: int, milliseconds: int) -> float:
    command = [str(PROGRAM), "rate", situation, str(workers), str(frame_bytes), str(milliseconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return float(done.stdout)


def measure(frame_bytes: int, rounds: int, milliseconds: int) -> dict[str, dict[str, list[float]]]:
    """Frames a second of every round, by situation and number of workers."""
    rates: dict[str, dict[str, list[float]]] = {situation: {"1": [], "2": []} for situation in SITUATIONS}
    for number in range(rounds):
        for situation in SITUATIONS:
            for workers in ("1", "2") if number % 2 == 0 else ("2", "1"):
                rate = frames_per_second(situation, int(workers), frame_bytes, milliseconds)
                rates[situation][workers].append(rate)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=64, help="of a frame")
    parser.add_argument("--milliseconds", type=int, default=300, help="of a round")
    parser.add_argument("--out", type=Path, help="write every round as JSON")
    options = parser.parse_args()
    if not PROGRAM.exists():
        print(f"{PROGRAM} is missing: cmake --preset gates && cmake --build --preset gates", file=sys.stderr)
        return 1
    print(f"{'two workers with':36} {'1 worker':>10} {'2 workers':>10} {'ratio':>6}   lowest and highest round")
    try:
        results = measure(options.bytes, options.rounds, options.milliseconds)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    for situation, rates in results.items():
        one, two = (statistics.median(rates[workers]) / 1e6 for workers in ("1", "2"))
        spread = ", ".join(f"{min(rates[n]) / 1e6:.2f}..{max(rates[n]) / 1e6:.2f}" for n in ("1", "2"))
        print(f"{situation:36} {one:8.2f} M {two:8.2f} M {two / one:6.2f}   {spread}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
