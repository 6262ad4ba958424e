# SPDX-License-Identifier: Apache-2.0
"""One daemon at one control socket: whoever of several gets it, the others say who has it; the dead hold nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from switch.api.sockets import claim_socket
from switch.errors import SwitchError
from switch.lock import Held, Lock

ROOT = Path(__file__).resolve().parents[2]

CLAIM = """
import pathlib, sys, time
from switch.api.sockets import claim_socket
from switch.errors import SwitchError
print("ready", flush=True)
start = float(sys.stdin.readline())
while time.monotonic() < start:
    pass
try:
    held = claim_socket(pathlib.Path(sys.argv[1]), 0o600, None)
except SwitchError as error:
    print("refused", error, flush=True)
else:
    print("claimed", flush=True)
    sys.stdin.readline()
"""


def claimers(path: Path, count: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(path)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]


def race(path: Path, count: int) -> tuple[list[subprocess.Popen[str]], list[str]]:
    """So many processes that claim the socket at once, and what each of them says."""
    racers = claimers(path, count)
    said = []
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    start = time.monotonic() + 0.05
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(f"{start}\n")
        racer.stdin.flush()
    for racer in racers:
        assert racer.stdout
        said.append(racer.stdout.readline())
    return racers, said


def end(racers: list[subprocess.Popen[str]]) -> None:
    for racer in racers:
        racer.send_signal(signal.SIGKILL)
        racer.communicate()


def test_of_many_that_start_at_once_on_a_stale_socket_one_gets_it_and_the_others_name_it(folder: Path) -> None:
    path = folder / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for _ in range(3):  # killed each time, so that the next find a stale socket and a lock file that nobody holds
        racers, said = race(path, 5)
        try:
            winners = [racer.pid for racer, line in zip(racers, said, strict=True) if line == "claimed\n"]
            assert len(winners) == 1, said
            for line in said:
                assert line == "claimed\n" or f"owns it (process {winners[0]})" in line or "at this moment" in line
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        finally:
            end(racers)


def test_a_lock_file_that_was_deleted_does_not_give_away_a_socket_that_answers(folder: Path) -> None:
    claimed = claim_socket(folder / "c.sock", 0o600, None)
    (folder / "c.sock.lock").unlink()
    with pytest.raises(SwitchError, match=rf"a running switchd owns it \(process {os.getpid()}\)"):
        claim_socket(folder / "c.sock", 0o600, None)
    assert not (folder / "c.sock.lock").exists()
    claimed.release()


def test_a_socket_that_was_deleted_is_not_given_away_while_its_daemon_runs(folder: Path) -> None:
    claimed = claim_socket(folder / "c.sock", 0o600, None)
    (folder / "c.sock").unlink()
    with pytest.raises(SwitchError, match=rf"a running switchd owns it \(process {os.getpid()}\)"):
        claim_socket(folder / "c.sock", 0o600, None)
    claimed.release()
    claim_socket(folder / "c.sock", 0o600, None).release()


def test_nothing_is_left_when_it_is_released_or_refused(folder: Path) -> None:
    claim_socket(folder / "c.sock", 0o600, None).release()
    (folder / "c.sock").write_text("precious")
    with pytest.raises(SwitchError, match="no socket"):
        claim_socket(folder / "c.sock", 0o600, None)
    assert [path.name for path in folder.iterdir()] == ["c.sock"]


def test_a_lock_is_free_again_when_its_holder_was_killed(folder: Path) -> None:
    (racer,), (said,) = race(folder / "c.sock", 1)
    assert said == "claimed\n"
    with pytest.raises(Held, match=f"process {racer.pid}"):
        Lock.take(folder / "c.sock.lock")
    end([racer])
    Lock.take(folder / "c.sock.lock").release()


def test_a_lock_whose_file_another_holder_removed_is_taken_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "x.lock"
    first = Lock.take(path)
    opened = os.open
    once = [first]

    def open_then_release(*arguments: object, **more: object) -> int:
        descriptor: int = opened(*arguments, **more)  # type: ignore[arg-type]
        if once:
            once.pop().release()  # between the open and the lock of the second
        return descriptor

    monkeypatch.setattr("os.open", open_then_release)
    second = Lock.take(path)
    with pytest.raises(Held):
        Lock.take(path)
    second.release()


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (lambda path: path.mkdir(), "directory"),
        (lambda path: os.mkfifo(path), "no file"),
        (lambda path: path.symlink_to("elsewhere"), "symbolic link"),
    ],
)
def test_what_stands_in_the_way_of_a_lock_is_named(folder: Path, put: Callable[[Path], None], why: str) -> None:
    put(folder / "c.sock.lock")
    with pytest.raises(SwitchError, match=rf"cannot lock {folder}/c.sock.lock: .*{why}"):
        claim_socket(folder / "c.sock", 0o600, None)
    assert not (folder / "elsewhere").exists()
