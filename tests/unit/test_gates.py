# SPDX-License-Identifier: Apache-2.0
"""The instruction gates' arithmetic: what is let pass, what is not, and what is said about it."""

from __future__ import annotations

from collections import Counter

import pytest
from iced_x86 import Decoder

from tests.gates import limits
from tests.gates.analyse import Counted, Loop, Place, is_locked, place_of, short_name
from tests.gates.sharing import ALLOWED, ONE_QUEUE, OWN_QUEUES, Touch, faults_of


def path(
    per_frame: int, *, name: str = "p", locked: int = 1, divisions: int = 0, calls: int = 0, shared: bool = False
) -> Counted:
    busy = Loop(
        instructions=32 * per_frame, calls=32 * calls, locked=locked, divisions=divisions,
        functions=Counter({"a.h f": 32 * (per_frame - 40), "a.h g": 32 * 40}), callers=Counter({"a.h f": 32 * calls}),
    )  # fmt: skip
    return Counted(name, frames=32, queues=2, shared=shared, idle=Loop(instructions=20), busy=busy)


def idle(instructions: int, locked: int = 0) -> Counted:
    loop = Loop(instructions=instructions, locked=locked)
    return Counted("p", frames=0, queues=16, shared=False, idle=loop, busy=None)


@pytest.mark.parametrize(
    ("situation", "then", "now", "alike", "fault"),
    [
        ("as it was", path(130), path(130), True, None),
        ("fewer", path(130), path(90), True, None),
        ("within two per cent", path(130), path(132), True, None),
        (
            "above",
            path(130),
            path(133),
            True,
            "p: 133.0 instructions per frame, limit 130.0; what grew: a.h f: 90",
        ),
        ("small numbers have two instructions of room", path(50), path(52), True, None),
        ("and not three", path(50), path(53), True, "what grew: a.h f: 10.0 -> 13.0"),
        ("another compiler", path(130), path(150), False, None),
        ("another compiler, much more", path(130), path(170), False, "170.0 instructions"),
        ("a call for each frame", path(130), path(130, calls=1), True, "1.00 library calls per frame, limit 0.00"),
        ("a division", path(130), path(130, divisions=1), True, "1 divisions in one loop, none allowed"),
        ("a second locked instruction", path(130), path(130, locked=2), True, "2 locked instructions in one loop, 1"),
        ("which no limit can allow", path(130, locked=33), path(130, locked=33), True, "33 locked instructions"),
        ("but for a shared queue", path(130, locked=5, shared=True), path(130, locked=5, shared=True), True, None),
        ("a locked idle loop", idle(160), idle(160, locked=1), True, "1 locked instructions in one loop, 0 allowed"),
        ("idle queues", idle(160), idle(200), True, "12.5 instructions per idle queue, limit 10.0"),
    ],
)
def test_faults(situation: str, then: Counted, now: Counted, alike: bool, fault: str | None) -> None:
    found = limits.faults([now], {"p": limits.cost_of(then)}, alike)
    assert len(found) == (fault is not None), situation
    if fault is not None:
        assert fault in found[0], situation


def test_a_path_without_a_limit_is_a_fault() -> None:
    assert limits.faults([path(1)], {}, True) == ["p: has no limit; set one (update)"]


def test_frames_cost_the_same_at_every_scale() -> None:
    few, many = path(130, name="scale-ports-2"), path(134, name="scale-ports-256")
    known = {item.name: limits.cost_of(item) for item in (few, many)}
    assert "they must be the same within 1 %" in limits.faults([few, many], known, True)[0]
    known["scale-ports-256"] = limits.cost_of(few)
    few.name = many.name = "scale-ports-256"
    assert limits.faults([few], known, True) == []


@pytest.mark.parametrize(
    ("code", "locked"),
    [
        ("f083042400", True),  # lock add dword [rsp], 0
        ("8707", True),  # xchg [rdi], eax
        ("4887c1", False),  # xchg rcx, rax
        ("0faef0", True),  # mfence
        ("480103", False),  # add [rbx], rax
    ],
)
def test_locked_instructions(code: str, locked: bool) -> None:
    assert is_locked(Decoder(64, bytes.fromhex(code)).decode()) == locked


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("sw::DeviceRxImpl<sw::SplitRing, false>::peek(sw::Batch&, sw::PortWorkerCounters&)", "DeviceRxImpl::peek"),
        ("sw::(anonymous namespace)::deliver(sw::Batch const&)", "deliver"),
        ("void sw::walk<int>(int)", "walk"),
        ("fetch", "fetch"),
    ],
)
def test_short_names(symbol: str, name: str) -> None:
    assert short_name(symbol) == name


@pytest.mark.parametrize(
    ("situation", "frames", "place"),
    [
        ("a helper is its caller", [("load", "/x/core_cpp/base/atomic.h"), ("f", "/x/core_cpp/l2/a.cc")], "l2/a.cc f"),
        ("so does the library", [("std::min", "/usr/include/c++/algo.h"), ("f", "/x/core_cpp/l2/a.cc")], "l2/a.cc f"),
        ("the harness does not count", [("f", "/x/core_cpp/l2/a.h"), ("main", "/x/tests/gates/main.cc")], ""),
        ("a stub", [("??", "??")], "calls into libraries"),
    ],
)  # fmt: skip
def test_places(situation: str, frames: list[tuple[str, str]], place: str) -> None:
    assert place_of(frames) == Place(place), situation


@pytest.mark.parametrize(
    ("situation", "found", "fault"),
    [
        (OWN_QUEUES, [], None),
        (OWN_QUEUES, [Touch("heap", 64, "l2/a.cc f", "l2/a.cc g")], "share a line: heap + 64, written in l2/a.cc f"),
        (ONE_QUEUE, [Touch(place, 0, "f", "g") for place in ALLOWED[ONE_QUEUE]], None),
        (ONE_QUEUE, [Touch(place, 0, "f", "g") for place in ALLOWED[ONE_QUEUE][1:]], "nothing of port 2: tx queue 0"),
    ],
)
def test_shared_lines(situation: str, found: list[Touch], fault: str | None) -> None:
    faults = faults_of(situation, found)
    assert len(faults) == (fault is not None)
    if fault is not None:
        assert fault in faults[0]
