# SPDX-License-Identifier: Apache-2.0
"""`make run`: frames flow both ways or it says why, and nothing of it stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.interop.process import Process, wait_until
from tests.interop.switchd import free_port, vhost_port


def config(folder: Path, ports: int = 2) -> Path:
    sockets = folder / "sockets"
    file = folder / "demo.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "control": {"socket": str(sockets / "control.sock")},
                "metrics": {"listen": f"127.0.0.1:{free_port()}"},
                "ports": [vhost_port(f"vm{n}", sockets / f"vm{n}.sock") for n in range(1, ports + 1)],
            }
        )
    )
    return file


def demo(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "switch.demo", "--config", str(file), *options]


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder: the daemon by its file, the guests by their sockets."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in text and "pytest" not in text:
            found.append(text)
    return found


def test_frames_flow_both_ways_and_nothing_stays_behind(folder: Path) -> None:
    done = subprocess.run(
        demo(config(folder), "--duration", "2"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in Mpps" in done.stdout
    for name in ("vm1", "vm2"):
        assert f"\n{name}: " in done.stdout
    assert not processes_of(folder)
    assert not (folder / "sockets").exists()


def test_an_end_by_signal_is_as_clean(folder: Path) -> None:
    process = Process(demo(config(folder)), folder / "demo.log")
    try:
        wait_until("two lines of the table", lambda: process.text().count("in Mpps") >= 2, 30.0)
        process.signal(signal.SIGTERM)
        assert process.wait(20.0) == 0, process.text()
    finally:
        process.kill()
    wait_until("every process has ended", lambda: not processes_of(folder), 5.0)
    assert not (folder / "sockets").exists()


def test_a_taken_metrics_port_is_stepped_around(folder: Path) -> None:
    file = config(folder)
    taken = int(yaml.safe_load(file.read_text())["metrics"]["listen"].rsplit(":", 1)[1])
    server = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(taken)]
    other = Process(server, folder / "other.log")
    try:
        wait_until("the port is taken", lambda: "Serving" in other.text() or other.status is not None, 10.0)
        done = subprocess.run(demo(file, "--duration", "1"), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"port {taken} is in use" in done.stdout
    finally:
        other.stop()


def test_a_configuration_that_cannot_show_anything_is_refused(folder: Path) -> None:
    done = subprocess.run(demo(config(folder, ports=1)), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "two vhostuser ports" in done.stderr
    missing = subprocess.run(demo(folder / "none.yaml"), capture_output=True, text=True, timeout=30, check=False)
    assert missing.returncode == 1
    assert "none.yaml" in missing.stderr
