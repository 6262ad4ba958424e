# SPDX-License-Identifier: Apache-2.0
"""The limits: what a path may cost, and what it cost, function by function, when its limit was set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.gates.analyse import Counted, Run

FILE = Path(__file__).with_name("limits.json")

# Above the limit by no more than this is let pass: the lead of a compiler's patch level, a spilled register.
SLACK_SHARE = 0.02
SLACK_INSTRUCTIONS = 2.0
# Another compiler than the one the limits were set with makes other code, and another CPU may choose other routines.
OTHER_SHARE = 0.25
# Frames cost the same however many ports and workers there are.
SCALE_PREFIX = "scale-"
SCALE_SHARE = 0.01
IDLE_PREFIX = "idle-"


@dataclass
class Cost:
    """Of a frame; of an idle queue for paths that are idle."""

    instructions: float
    calls: float
    locked: int  # per loop
    divisions: int  # per loop
    functions: dict[str, float] = field(default_factory=dict)


def cost_of(path: Counted) -> Cost:
    loop, units = (path.idle, path.queues) if path.busy is None else (path.busy, path.frames)
    # What the idle ports take is another path's number.
    spared = path.idle.instructions if path.busy is not None and path.name.startswith(SCALE_PREFIX) else 0
    functions = {name: round(times / units, 1) for name, times in loop.functions.most_common()}
    return Cost(
        instructions=round((loop.instructions - spared) / units, 2),
        calls=round(loop.calls / units, 2),
        locked=loop.locked,
        divisions=loop.divisions,
        functions={name: share for name, share in functions.items() if share >= 0.3},
    )


def costs_of(run: Run) -> dict[str, Cost]:
    return {path.name: cost_of(path) for path in run.paths}


def most_allowed(limit: float, alike: bool) -> float:
    share = SLACK_SHARE if alike else OTHER_SHARE
    return limit + max(limit * share, SLACK_INSTRUCTIONS)


def grown(now: Cost, then: Cost) -> list[str]:
    """The functions that take more than they did, the worst first."""
    changes = [
        (now.functions.get(name, 0.0) - then.functions.get(name, 0.0), name)
        for name in now.functions.keys() | then.functions.keys()
    ]
    return [
        f"{name}: {then.functions.get(name, 0.0):.1f} -> {now.functions.get(name, 0.0):.1f}"
        for change, name in sorted(changes, reverse=True)
        if change >= 0.5
    ]


def faults(paths: list[Counted], limits: dict[str, Cost], alike: bool) -> list[str]:
    """What is wrong, in sentences; empty when every path keeps its limits."""
    found: list[str] = []
    for path in paths:
        now, then = cost_of(path), limits.get(path.name)
        if then is None:
            found.append(f"{path.name}: has no limit; set one (update)")
            continue
        unit = "idle queue" if path.busy is None else "frame"
        if now.instructions > most_allowed(then.instructions, alike):
            found.append(
                f"{path.name}: {now.instructions:.1f} instructions per {unit}, limit {then.instructions:.1f}; "
                f"what grew: {'; '.join(grown(now, then)) or 'no function by itself'}"
            )
        if now.calls > then.calls + 0.01:
            where = (path.busy or path.idle).callers.most_common(3)
            found.append(
                f"{path.name}: {now.calls:.2f} library calls per {unit}, limit {then.calls:.2f}; "
                f"most from {', '.join(name for name, _ in where)}"
            )
        if now.divisions > 0:
            found.append(f"{path.name}: {now.divisions} divisions in one loop, none allowed")
        # One fence stands between all that a loop published and all notifications; a shared queue costs its lock.
        allowed = then.locked if path.shared else min(then.locked, 1 if path.busy is not None else 0)
        if now.locked > allowed:
            found.append(f"{path.name}: {now.locked} locked instructions in one loop, {allowed} allowed")
    found += scale_faults(paths)
    return found


def scale_faults(paths: list[Counted]) -> list[str]:
    scale = [path for path in paths if path.name.startswith(SCALE_PREFIX) and not path.shared]
    if not scale:
        return []
    first = cost_of(scale[0]).instructions
    return [
        f"{path.name}: {cost} instructions per frame, {scale[0].name}: {first}; they must be the same within 1 %"
        for path in scale[1:]
        if abs((cost := cost_of(path).instructions) - first) > first * SCALE_SHARE
    ]


def load(file: Path = FILE) -> tuple[str, dict[str, Cost]]:
    raw = json.loads(file.read_text())
    return raw["made_with"], {name: Cost(**cost) for name, cost in raw["paths"].items()}


def save(run: Run, file: Path = FILE) -> None:
    """One line a path, so that a difference shows which paths changed."""
    paths = [f"  {json.dumps(name)}: {json.dumps(vars(cost))}" for name, cost in costs_of(run).items()]
    text = ",\n".join(paths)
    file.write_text(f'{{\n "made_with": {json.dumps(run.made_with)},\n "paths": {{\n{text}\n }}\n}}\n')
