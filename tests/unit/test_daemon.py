# SPDX-License-Identifier: Apache-2.0
"""switchd as a process: what stops it from starting, signals, systemd, the control socket. The datapath is a double."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from switch import daemon
from switch.api.sockets import claim_socket
from switch.config import Config, Machine, load_config, parse_config
from switch.daemon import Daemon, leave_worker_cpus, main
from switch.datapath import DatapathOptions
from switch.errors import SwitchError
from switch.notify import Notifier
from switch.state import StateFile
from tests.support.daemon import MACHINE, config_text
from tests.support.memory_datapath import MemoryDatapath

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """`main` sends the log to a stderr that is gone when its test has ended."""
    root, ours = logging.getLogger(), logging.getLogger("switch")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


class Run:
    """A Daemon on this loop, with its file in `folder`."""

    def __init__(self, folder: Path, text: str = "", fresh: bool = False) -> None:
        self.folder = folder
        self.path = folder / "switch.yaml"
        self.path.write_text(text or config_text(folder))
        self.datapath = MemoryDatapath()
        config = parse_config(self.path.read_text(), str(self.path), folder, MACHINE)
        self.daemon = Daemon(config, self.path, MACHINE, fresh=fresh, opener=lambda options: self.datapath)


async def until(condition: Callable[[], bool], task: asyncio.Task[int]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert not task.done(), task.exception() or task.result()
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def live(run: Run, scenario: Callable[[asyncio.Task[int]], Awaitable[None]]) -> int:
    """Start, wait until it serves, play the scenario, stop with SIGTERM."""

    async def play() -> int:
        cpus = os.sched_getaffinity(0)
        task = asyncio.create_task(run.daemon.run())

        def serves() -> bool:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(run.folder / "control.sock"))
                return run.datapath.started and len(run.datapath.specs) > 0
            return False

        try:
            await until(serves, task)
            await scenario(task)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            result = await asyncio.wait_for(task, 30)
            os.sched_setaffinity(0, cpus)
        return result

    return asyncio.run(play())


async def ask(folder: Path, method: str, path: str, body: str = "") -> str:
    reader, writer = await asyncio.open_unix_connection(str(folder / "control.sock"))
    head = f"{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    reply = (await reader.read()).decode()
    writer.close()
    assert " 20" in reply.splitlines()[0], reply
    return reply


async def nothing(_: asyncio.Task[int]) -> None:
    return None


def test_it_serves_and_stops_cleanly_with_its_state_saved(folder: Path) -> None:
    run = Run(folder)
    assert live(run, nothing) == 0
    assert not run.datapath.started
    assert not (folder / "control.sock").exists()
    assert (folder / "control.sock.state.json").exists()


def test_sighup_applies_the_file_and_a_bad_one_changes_nothing(folder: Path) -> None:
    run = Run(folder)

    async def scenario(task: asyncio.Task[int]) -> None:
        run.path.write_text(config_text(folder).replace("access: 10", "access: 11"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: run.datapath.specs["vm1"].vlan.access == 11, task)
        run.path.write_text("version: 1\nports: {}\nprots: 1\n")
        os.kill(os.getpid(), signal.SIGHUP)
        reply = b""
        while b"switch_config_last_apply_success 0" not in reply:
            reader, writer = await asyncio.open_unix_connection(str(folder / "control.sock"))
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            reply = await reader.read()
            writer.close()
        assert set(run.datapath.specs) == {"vm1", "vm2"}

    assert live(run, scenario) == 0


def test_a_refused_file_is_one_event(folder: Path) -> None:
    two_bridges = config_text(folder, extra="bridges: [{name: br0}, {name: br1}]\n").replace(
        "user,", "user, bridge: br0,"
    )
    run = Run(folder, two_bridges)
    kind = "/v1/events?kind=config_refused"

    async def scenario(task: asyncio.Task[int]) -> None:
        run.datapath.refuse = {"vm3": "no memory"}
        port = f'{{"name": "vm9", "type": "vhostuser", "bridge": "br1", "socket": "{folder}/vm9.sock"}}'
        await ask(folder, "POST", "/v1/ports", port)
        for number, text in enumerate(
            [
                two_bridges + "prots: 1\n",  # its own fault
                two_bridges.replace("vm2", "vm3"),  # the datapath's
                config_text(folder),  # no bridge for vm9, which was added at run time
            ],
            start=1,
        ):
            run.path.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            reply = ""
            while reply.count("config_refused") < number:
                assert not task.done()
                reply = await ask(folder, "GET", kind)
            while run.daemon._reloading.locked():
                await asyncio.sleep(0.01)
            assert (await ask(folder, "GET", kind)).count("config_refused") == number

    assert live(run, scenario) == 0


def test_of_two_reloads_the_later_file_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(folder)
    read = threading.Event()
    loads: list[int] = []

    def slow_at_first(path: Path, machine: Machine) -> Config:
        config = load_config(path, machine)
        loads.append(config.ports[0].vlan.access or 0)
        if len(loads) == 1:
            read.set()
            time.sleep(0.2)  # a large file
        return config

    monkeypatch.setattr("switch.daemon.load_config", slow_at_first)

    async def scenario(task: asyncio.Task[int]) -> None:
        for vid in (11, 12):
            run.path.write_text(config_text(folder).replace("access: 10", f"access: {vid}"))
            os.kill(os.getpid(), signal.SIGHUP)
            await until(read.is_set, task)
        await until(lambda: len(loads) == 2 and not run.daemon._reloading.locked(), task)
        assert run.datapath.specs["vm1"].vlan.access == 12

    assert live(run, scenario) == 0


def test_a_change_is_saved_at_once_and_after_a_failure_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(folder)
    state = folder / "control.sock.state.json"
    original = StateFile.save
    failed = threading.Event()

    def save(self: StateFile, *arguments: Any, **more: Any) -> bool:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("never foreseen")
        return original(self, *arguments, **more)

    monkeypatch.setattr(StateFile, "save", save)

    async def scenario(task: asyncio.Task[int]) -> None:
        await ask(folder, "PATCH", "/v1/ports/vm1", '{"isolated": true}')
        await until(failed.is_set, task)
        await ask(folder, "PATCH", "/v1/ports/vm1", '{"flood": false}')
        await until(lambda: state.exists() and '"flood":false' in state.read_text(), task)

    monkeypatch.setattr(daemon, "SAVE_INTERVAL", 1000.0)
    assert live(run, scenario) == 0


def test_a_second_daemon_is_refused_and_the_first_goes_on(folder: Path) -> None:
    run = Run(folder)

    async def scenario(task: asyncio.Task[int]) -> None:
        with pytest.raises(SwitchError, match="a running switchd owns it"):
            claim_socket(folder / "control.sock", 0o660, None)

    assert live(run, scenario) == 0


def test_a_control_socket_that_was_removed_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(folder)
    path = folder / "control.sock"

    async def scenario(task: asyncio.Task[int]) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))  # who came before is served on
        for _ in range(2):
            path.unlink()
            await until(path.exists, task)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert "vm1" in await ask(folder, "GET", "/v1/ports")
        writer.write(b"GET /v1/ports HTTP/1.0\r\n\r\n")
        assert b"vm1" in await reader.read()
        writer.close()
        path.unlink()
        path.write_text("another's")
        await asyncio.sleep(1.5)  # a look or two
        assert path.read_text() == "another's"

    assert live(run, scenario) == 0
    assert caplog.text.count("was removed by somebody: listening there again") == 2
    assert path.read_text() == "another's"


def test_a_file_that_changed_during_the_start_is_read_again(folder: Path) -> None:
    run = Run(folder)

    class Slow(MemoryDatapath):
        def start(self) -> None:
            run.path.write_text(config_text(folder).replace("access: 10", "access: 11"))
            os.kill(os.getpid(), signal.SIGHUP)
            super().start()

    run.datapath = Slow()

    async def scenario(task: asyncio.Task[int]) -> None:
        await until(lambda: run.datapath.specs["vm1"].vlan.access == 11, task)

    assert live(run, scenario) == 0


def test_two_switches_do_not_keep_their_state_in_one_file(folder: Path) -> None:
    (folder / "state").mkdir()
    run = Run(folder, config_text(folder).replace("switch: {", f"switch: {{state_dir: {folder}/state, "))

    async def scenario(task: asyncio.Task[int]) -> None:
        said = rf"cannot keep state in .* \(process {os.getpid()}\); .*state_dir"
        with contextlib.ExitStack() as stack, pytest.raises(SwitchError, match=said):
            daemon._lock_state(folder / "state/control.sock.state.json", stack)

    assert live(run, scenario) == 0
    assert [path.name for path in (folder / "state").iterdir()] == ["control.sock.state.json"]


def test_ports_that_fail_stop_the_start_and_leave_nothing(folder: Path) -> None:
    run = Run(folder)
    run.datapath.refuse = {"vm1": "its path is in use", "vm2": "permission denied"}
    with pytest.raises(SwitchError, match=r"(?s)its path is in use.*permission denied"):
        asyncio.run(run.daemon.run())
    assert not run.datapath.started
    assert not (folder / "control.sock").exists()


def test_fresh_forgets(folder: Path) -> None:
    (folder / "control.sock.state.json").write_text("{damaged")
    assert live(Run(folder, fresh=True), nothing) == 0
    assert not (folder / "control.sock.state.json.corrupt").exists()


def test_systemd_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        heard: list[str] = []

        def hear() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(manager.recv(4096).decode())
            return any("WATCHDOG=1" in line for line in heard)

        async def scenario(task: asyncio.Task[int]) -> None:
            await until(hear, task)

        assert live(Run(folder), scenario) == 0
        hear()
    assert heard[0].startswith("READY=1\nSTATUS=2 ports")
    assert any(line == "STOPPING=1" for line in heard)


def test_state_goes_to_the_directory_that_systemd_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (variable, key, where) in enumerate(
        [("one:two", "", "one"), ("one", "three", "three"), ("", "", ".")]  # $STATE_DIRECTORY, state_dir, the place
    ):
        for name in ("one", "two", "three"):
            (folder / f"{number}/{name}").mkdir(parents=True)
        here = folder / str(number)
        monkeypatch.setenv("STATE_DIRECTORY", ":".join(str(here / part) for part in variable.split(":") if part))
        text = config_text(here)
        if key:
            text = text.replace("switch: {", f"switch: {{state_dir: {here / key}, ")
        assert live(Run(here, text), nothing) == 0
        assert [str(path.parent.relative_to(here)) for path in here.rglob("*.state.json")] == [where]


def test_the_sample_unit_is_sound_and_what_the_daemon_serves() -> None:
    path = ROOT / "configs/switchd.service"
    unit = path.read_text()
    for line in (
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RuntimeDirectory=switch",
        "StateDirectory=switch",
    ):
        assert line in unit.splitlines()
    needed = shutil.which("systemd-analyze")
    if needed is None:
        pytest.skip("systemd-analyze is missing: install the package systemd")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "switchd.service"
        copy.write_text(unit.replace("/opt/switch/bin/switchd", "/bin/true"))
        done = subprocess.run([needed, "verify", str(copy)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "switchd.service" in line]
    assert ours == []


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 4096, 4096), (4096, 4096, 4096)])
def test_the_limit_of_descriptors_is_the_hard_one(soft: int, hard: int, after: int) -> None:
    code = (
        "import resource; from switch.daemon import raise_descriptor_limit; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); raise_descriptor_limit(); "
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(after), str(hard)]


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Notifier().send("READY=1")
    assert Notifier.watchdog_interval() is None


# ---- the control socket ----


def test_the_control_socket_has_its_mode_and_group(folder: Path) -> None:
    claimed = claim_socket(folder / "c.sock", 0o640, os.getgid())
    found = (folder / "c.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_gid == os.getgid()
    claimed.release()
    assert not (folder / "c.sock").exists()


def test_a_stale_control_socket_is_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "c.sock"))
    claim_socket(folder / "c.sock", 0o660, None).release()


def test_a_file_in_the_way_is_never_removed(folder: Path) -> None:
    (folder / "c.sock").write_text("precious")
    with pytest.raises(SwitchError, match="no socket"):
        claim_socket(folder / "c.sock", 0o660, None)
    assert (folder / "c.sock").read_text() == "precious"


def test_a_missing_directory_is_named(folder: Path) -> None:
    with pytest.raises(SwitchError, match="none does not exist; create it"):
        claim_socket(folder / "none" / "c.sock", 0o660, None)


def test_a_path_that_somebody_else_took_over_is_left_alone(folder: Path) -> None:
    claimed = claim_socket(folder / "c.sock", 0o660, None)
    (folder / "c.sock").unlink()
    (folder / "c.sock").write_text("another's")
    claimed.release()
    assert (folder / "c.sock").exists()


# ---- the command ----


def test_check_says_ok_and_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "ok.yaml"
    path.write_text(config_text(folder).replace("cpu: 2", f"cpu: {min(os.sched_getaffinity(0))}"))
    assert main(["--config", str(path), "--check"]) == 0
    assert "ok, 2 ports, 1 bridge" in capsys.readouterr().out
    assert not (folder / "control.sock").exists()


def test_all_faults_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "bad.yaml"
    path.write_text("version: 1\nprots: []\nswitch: {pollling: busy}\n")
    assert main(["--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path}:2:1" in said
    assert f"{path}:3:" in said
    assert "2 faults" in said


def test_a_file_that_is_not_there_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(folder / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_a_group_that_does_not_exist_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "group.yaml"
    path.write_text(f"version: 1\ncontrol: {{socket: {folder}/c.sock, group: nobodyknows}}\n")
    assert main(["--config", str(path)]) == 1
    assert "nobodyknows" in capsys.readouterr().err


def test_the_control_plane_leaves_the_workers_their_cpus() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        if len(allowed) > 1:
            worker = max(allowed)
            rest = leave_worker_cpus(DatapathOptions((worker,)), frozenset(allowed))
            assert worker not in rest
            assert os.sched_getaffinity(0) == rest
        everything = frozenset(allowed)
        assert leave_worker_cpus(DatapathOptions(tuple(allowed)), everything) == everything
        assert leave_worker_cpus(DatapathOptions((min(allowed),), pin=False), everything) == everything
    finally:
        os.sched_setaffinity(0, allowed)
