# SPDX-License-Identifier: Apache-2.0
"""When a worker is called stuck, and when it is not."""

from __future__ import annotations

import logging

import pytest

from switch.watch import WorkerWatch

ROWS = [
    # rounds of two workers at each look, what is told in the end: workers that are stuck, and for how long
    ("both go on", [(1, 1), (2, 9), (3, 10), (4, 11), (5, 12), (6, 13), (7, 14)], {}),
    ("one stands still, not yet long enough", [(1, 1)] + [(2, n) for n in range(2, 7)], {}),
    ("one stands still for five looks", [(2, n) for n in range(6)], {0: 5}),
    ("and longer", [(2, n) for n in range(9)], {0: 8}),
    ("one round is enough to go on", [(2, n) for n in range(6)] + [(3, 7)], {}),
    ("a counter that wraps has moved", [(2**64 - 1, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)], {}),
    ("both", [(2, 2)] * 6, {0: 5, 1: 5}),
    ("never looked at twice", [(2, 2)], {}),
]


@pytest.mark.parametrize(("rounds", "stuck"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_is_stuck(rounds: list[tuple[int, int]], stuck: dict[int, int]) -> None:
    looks = iter(rounds)
    watch = WorkerWatch(lambda: next(looks), lambda kind, detail: None)
    for _ in rounds:
        watch.look()
    assert watch.stuck == stuck


def test_it_is_told_once_and_once_again_when_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, str]] = []
    rounds = iter([2] * 9 + [3] + [4] * 3)
    watch = WorkerWatch(lambda: [next(rounds)], lambda kind, detail: told.append((kind, detail)))
    with caplog.at_level(logging.WARNING, "switch"):
        for _ in range(13):
            watch.look()
    assert [kind for kind, _ in told] == ["worker_stuck", "worker_recovered"]
    assert "worker 0 has made no round for 5 s" in told[0][1]
    assert "worker 0 polls again" in told[1][1]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("switch.watch.INTERVAL", 0.01)
    looks: list[int] = []

    def read() -> list[int]:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("never foreseen")
        return [1]

    watch = WorkerWatch(read, lambda kind, detail: None)
    watch.start()
    while not watch.stuck:
        pass
    watch.stop()
    assert watch.stuck.keys() == {0}
