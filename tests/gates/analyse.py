# SPDX-License-Identifier: Apache-2.0
"""From addresses that were executed to numbers with names: which function of core_cpp took how many instructions."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iced_x86 import Decoder, Instruction, Mnemonic, OpKind

CORE = "core_cpp/"
HARNESS = "tests/gates/"
# Helpers that every function uses: their instructions belong to the caller.
HELPERS = ("base/atomic.h", "base/bytes.h", "base/check.h", "stats/counters.h")
LINKAGE = "calls into libraries"

DIVISIONS = {Mnemonic.DIV, Mnemonic.IDIV}


@dataclass
class Loop:
    """What one loop of a worker executed."""

    instructions: int = 0
    calls: int = 0  # into libraries: memcpy, write
    locked: int = 0  # with a lock prefix, and other full fences
    divisions: int = 0
    functions: Counter[str] = field(default_factory=Counter)  # "virtio/device_rx.h fill" -> instructions
    callers: Counter[str] = field(default_factory=Counter)  # the same -> calls into libraries


@dataclass
class Counted:
    """A path as it was counted."""

    name: str
    frames: int
    queues: int  # that the loop polls
    shared: bool  # transmit queues belong to several workers
    idle: Loop
    busy: Loop | None


@dataclass
class Run:
    made_with: str
    paths: list[Counted]


def is_locked(instruction: Instruction) -> bool:
    """A locked operation or a full fence: what waits until every earlier store is visible."""
    if instruction.has_lock_prefix or instruction.mnemonic == Mnemonic.MFENCE:
        return True
    kinds = (instruction.op_kind(i) for i in range(instruction.op_count))
    return instruction.mnemonic == Mnemonic.XCHG and OpKind.MEMORY in kinds


def short_name(function: str) -> str:
    """Without name spaces, template arguments and parameters."""
    text = function.replace("(anonymous namespace)::", "").replace("sw::", "")
    text = re.sub(r"\[clone [^]]*\]", "", text)
    depth = 0
    kept = []
    for character in text.split("(", 1)[0]:
        depth += character == "<"
        if depth == 0:
            kept.append(character)
        depth -= character == ">"
    words = "".join(kept).split()
    return words[-1] if words else "?"


@dataclass(frozen=True)
class Place:
    function: str  # "virtio/device_rx.h fill"; empty: the harness, not counted


def place_of(frames: list[tuple[str, str]]) -> Place:
    """`frames`: (function, file) of an address, the innermost inlined one first."""
    outermost = frames[-1]
    if HARNESS in outermost[1]:
        return Place("")
    core = [(function, file.split(CORE, 1)[1]) for function, file in frames if CORE in file]
    if not core:
        return Place(LINKAGE)
    own = [item for item in core if item[1] not in HELPERS] or core
    function, file = own[0]
    return Place(f"{file} {short_name(function)}")


def symbolise(program: Path, addresses: list[str]) -> dict[str, Place]:
    done = subprocess.run(
        ["addr2line", "-e", str(program), "-a", "-f", "-i", "-C"],
        input="\n".join(addresses), capture_output=True, text=True, check=True,
    )  # fmt: skip
    places: dict[str, Place] = {}
    blocks = re.split(r"^(?=0x[0-9a-f]{16}$)", done.stdout, flags=re.MULTILINE)
    for address, block in zip(addresses, filter(None, blocks), strict=True):
        lines = block.splitlines()[1:]
        frames = [(lines[i], lines[i + 1].rsplit(":", 1)[0]) for i in range(0, len(lines), 2)]
        places[address] = place_of(frames)
    return places


def loop_of(section: dict[str, Any], code: dict[str, Instruction], places: dict[str, Place]) -> Loop:
    loop = Loop()
    for address, times in section["executed"].items():
        place = places[address]
        if not place.function:
            continue
        loop.instructions += times
        loop.functions[place.function] += times
        loop.locked += times * is_locked(code[address])
        loop.divisions += times * (code[address].mnemonic in DIVISIONS)
    for address, times in section["calls"].items():
        loop.calls += times
        loop.callers[places[address].function] += times
    return loop


def output_of(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"{program} ended with status {done.returncode}")
    return done.stdout


def count(program: Path, *names: str) -> Run:
    """Count the named paths (all if there are none), every other one in a second process."""
    known = tuple(output_of(program, "list").split())
    if unknown := set(names) - set(known):
        raise RuntimeError(f"no such path: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    chosen = names or known
    halves = [half for half in (chosen[::2], chosen[1::2]) if half]
    with ThreadPoolExecutor(len(halves)) as pool:
        runs = list(pool.map(lambda half: run_of(program, output_of(program, "count", *half)), halves))
    paths = {path.name: path for run in runs for path in run.paths}
    return Run(runs[0].made_with, [paths[name] for name in chosen])


def run_of(program: Path, text: str) -> Run:
    raw = json.loads(text)
    code = {address: Decoder(64, bytes.fromhex(digits)).decode() for address, digits in raw["code"].items()}
    sections = [path[part] for path in raw["paths"] for part in ("idle", "busy") if part in path]
    returns = {address for section in sections for address in section["calls"]}
    places = symbolise(program, sorted(code.keys() | returns))
    paths = [
        Counted(
            name=path["name"], frames=path["frames"], queues=path["queues"], shared=path["shared"],
            idle=loop_of(path["idle"], code, places),
            busy=loop_of(path["busy"], code, places) if "busy" in path else None,
        )
        for path in raw["paths"]
    ]  # fmt: skip
    return Run(raw["made_with"], paths)
