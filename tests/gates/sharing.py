# SPDX-License-Identifier: Apache-2.0
"""Which cache lines one worker writes and another one touches, from the trace that `gate sharing` writes."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iced_x86 import (
    Decoder,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    Register,
    RegisterExt,
    UsedMemory,
)

from tests.gates.analyse import output_of, symbolise

LINE = 64
WORDS = 18  # of struct Registers: rip, fs base, 16 general registers
READS = {OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
STACK_ABOVE = 1 << 16  # of a loop: from where its stack pointer was lowest, so much belongs to its stack


# What the situations of sharing.cc may share: only who sends into one queue shares it, and what it writes for it.
OWN_PORTS = "ports of their own"
OWN_QUEUES = "queues of their own"
ONE_QUEUE = "one transmit queue"
ALLOWED: dict[str, tuple[str, ...]] = {
    OWN_PORTS: (),
    OWN_QUEUES: (),
    ONE_QUEUE: ("port 2: tx queue 0", "port 2: tx counters", "port 2: guest memory"),
}


@dataclass(frozen=True)
class Touch:
    """A line that one worker writes and the other one reads or writes."""

    place: str  # "port 1: tx counters", or "heap"
    offset: int  # of the line in the place
    writer: str  # functions
    toucher: str


@dataclass
class Loop:
    written: dict[int, int]  # line -> rip of an instruction that did it
    touched: dict[int, int]


def value_of(steps: tuple[int, ...], number: Any) -> int:
    """The value of a register that is part of an address."""
    if number == Register.NONE:
        return 0
    full = RegisterExt.full_register(number)
    return steps[2 + RegisterExt.number(full)]


def address_of(memory: UsedMemory, steps: tuple[int, ...]) -> int:
    segment = steps[1] if memory.segment == Register.FS else 0
    address = segment + value_of(steps, memory.base) + value_of(steps, memory.index) * memory.scale
    return (address + memory.displacement) & ((1 << 64) - 1)


def loop_of(steps: Iterator[tuple[int, ...]], code: dict[int, Instruction]) -> Loop:
    factory = InstructionInfoFactory()
    if not all(code.values()):
        raise RuntimeError("the trace holds bytes that are no instruction")
    used = {rip: factory.info(instruction).used_memory() for rip, instruction in code.items()}
    every = list(steps)
    lowest = min(step[2 + 4] for step in every) - 128  # rsp and the red zone
    loop = Loop({}, {})
    for step in every:
        rip = step[0]
        for memory in used[rip]:
            if memory.access not in READS and memory.access not in WRITES:
                continue  # prefetches and lea
            first = address_of(memory, step)
            if lowest <= first < lowest + STACK_ABOVE:
                continue
            size = max(MemorySizeExt.size(memory.memory_size), 1)
            for line in range(first // LINE, (first + size - 1) // LINE + 1):
                loop.touched.setdefault(line, rip)
                if memory.access in WRITES:
                    loop.written.setdefault(line, rip)
    return loop


def shared_lines(program: Path, name: str) -> list[Touch]:
    """Lines that one of two workers writes and the other one touches, in the situation `name`."""
    with tempfile.NamedTemporaryFile() as file:
        raw: dict[str, Any] = json.loads(output_of(program, "sharing", name, file.name))
        words = struct.iter_unpack(f"<{WORDS}Q", Path(file.name).read_bytes())
        every = list(words)
    code = {int(rip): Decoder(64, bytes.fromhex(digits), ip=int(rip)).decode() for rip, digits in raw["code"].items()}
    first, second = raw["steps"]
    one, two = loop_of(iter(every[:first]), code), loop_of(iter(every[first : first + second]), code)
    clashes = [
        (line, writer.written[line], toucher.touched[line])
        for writer, toucher in ((one, two), (two, one))
        for line in sorted(writer.written.keys() & toucher.touched.keys())
    ]
    base = raw["base"]
    places = symbolise(program, sorted({hex(rip - base) for _, *rips in clashes for rip in rips}))
    found = []
    for line, writer_rip, toucher_rip in clashes:
        place, offset = place_of(line * LINE, raw["places"])
        functions = [places[hex(rip - base)].function for rip in (writer_rip, toucher_rip)]
        found.append(Touch(place, offset, functions[0], functions[1]))
    return found


def place_of(address: int, places: list[tuple[str, int, int]]) -> tuple[str, int]:
    for name, begin, size in places:
        if begin - LINE < address < begin + size:
            return name, address - begin
    return "heap", address


def faults_of(situation: str, found: list[Touch]) -> list[str]:
    """What two workers share although they should not, in sentences."""
    allowed = ALLOWED[situation]
    faults = [
        f"two workers with {situation} share a line: {touch.place} + {touch.offset}, "
        f"written in {touch.writer}, touched in {touch.toucher}"
        for touch in found
        if touch.place not in allowed
    ]
    # Workers that send into one queue do share lines: if none is seen, nobody was looking.
    seen = {touch.place for touch in found}
    faults += [f"two workers with {situation}: nothing of {place} is shared" for place in allowed if place not in seen]
    return faults


def sharing_faults(program: Path) -> list[str]:
    return [fault for situation in ALLOWED for fault in faults_of(situation, shared_lines(program, situation))]
