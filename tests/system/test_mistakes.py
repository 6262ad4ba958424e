# SPDX-License-Identifier: Apache-2.0
"""What people get wrong: each mistake is answered by a sentence that names it, and a running switch stays as it was."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import needs
from tests.interop.switchd import Switchd, entry_point, vhost_port


@pytest.fixture(scope="module")
def running(module_folder: Path) -> Iterator[Switchd]:
    with Switchd(module_folder, [vhost_port("vm1", module_folder / "vm1.sock")]) as switch:
        yield switch


def start_fails(switch: Switchd) -> str:
    """What a daemon that cannot start says; it must end by itself, with status 1 and without a traceback."""
    process = switch.start(wait=False)
    try:
        assert process.wait(30.0) == 1, process.text()
    finally:
        process.stop()
    assert "Traceback" not in process.text()
    return process.text()


def refused(switch: Switchd, *arguments: str) -> str:
    """What swctl says to a request that cannot be met; the switch must be as it was before."""
    before = (switch.ctl("ports"), switch.ctl("fdb"))
    status, output, errors = switch.ctl_status(*arguments, json_output=False)
    assert status == 1, output + errors
    assert "Traceback" not in errors
    names = [[port.get("name") for port in ports] for ports in map(rows, (before[0], switch.ctl("ports")))]
    assert names[0] == names[1]
    return output + errors


def rows(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else found["ports"]


def replaced(switch: Switchd, old: str, new: str) -> Path:
    path = switch.folder / "changed.yaml"
    text = switch.file.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_wrong_key_is_named_with_its_place(folder: Path) -> None:
    switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock", quees=2)])
    said = start_fails(switch)
    line = 1 + switch.file.read_text().splitlines().index("  quees: 2")
    assert f"{switch.file}:{line}:" in said
    assert "queues" in said


def test_text_that_is_no_yaml_is_named_with_its_place(folder: Path) -> None:
    path = folder / "broken.yaml"
    path.write_text("version: 1\nports: [{name: vm1\n")
    done = subprocess.run(
        [entry_point("switchd"), "--config", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert f"{path}:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    done = subprocess.run(
        [entry_point("switchd"), "--config", str(folder / "none.yaml")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert str(folder / "none.yaml") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cpu_that_does_not_exist_is_named(folder: Path) -> None:
    assert "4000" in start_fails(Switchd(folder, [], cpu=4000))


def test_a_second_daemon_on_the_same_control_socket_is_refused(running: Switchd, folder: Path) -> None:
    second = Switchd(folder, [])
    second.config["control"]["socket"] = str(running.control)
    assert str(running.control) in start_fails(second)
    assert running.ctl_status("ports")[0] == 0, "the first goes on"


def test_a_metrics_address_in_use_is_named(running: Switchd, folder: Path) -> None:
    second = Switchd(folder, [])
    second.config["metrics"]["listen"] = f"127.0.0.1:{running.metrics_port}"
    assert str(running.metrics_port) in start_fails(second)


def test_a_socket_in_use_is_named(running: Switchd, folder: Path) -> None:
    path = folder / "taken.sock"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen()
        said = refused(running, "add-port", "vhostuser", "taken", "--socket", str(path))
        assert str(path) in said


def test_a_socket_left_by_a_dead_owner_is_taken_over(running: Switchd, folder: Path) -> None:
    path = folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
    running.ctl("add-port", "vhostuser", "stale", "--socket", str(path))
    running.ctl("del-port", "stale")


def test_a_file_that_is_no_socket_is_never_removed(running: Switchd, folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    assert str(path) in refused(running, "add-port", "vhostuser", "precious", "--socket", str(path))
    assert path.read_text() == "data"


def test_a_folder_that_does_not_exist_is_named(running: Switchd, folder: Path) -> None:
    path = folder / "none/vm.sock"
    assert str(path.parent) in refused(running, "add-port", "vhostuser", "lost", "--socket", str(path))


def test_a_folder_without_permission_is_named(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0)
    prefix: list[str] = []
    if os.geteuid() == 0:  # root may write anywhere unless it gives that up
        prefix = [
            needs.program("setpriv", "util-linux"),
            "--inh-caps=-all",
            "--bounding-set=-dac_override,-dac_read_search",
        ]
    with Switchd(folder, [], prefix=prefix) as switch:
        said = refused(switch, "add-port", "vhostuser", "closed", "--socket", str(closed / "vm.sock"))
        assert str(closed) in said
        assert "ermission" in said


def test_a_path_too_long_for_a_socket_is_named(running: Switchd, folder: Path) -> None:
    assert "107" in refused(running, "add-port", "vhostuser", "long", "--socket", str(folder / ("x" * 120)))


def test_a_device_that_does_not_exist_is_named(running: Switchd) -> None:
    assert "nosuch0" in refused(running, "add-port", "afpacket", "up", "--device", "nosuch0")


def test_a_name_in_use_is_refused(running: Switchd) -> None:
    assert "vm1" in refused(running, "add-port", "vhostuser", "vm1", "--socket", str(running.folder / "x.sock"))


def test_a_port_that_does_not_exist_is_named_and_missing_ok_forgives(running: Switchd) -> None:
    assert "nobody" in refused(running, "del-port", "nobody")
    running.ctl("del-port", "nobody", "--missing-ok")


def test_an_unknown_kind_is_answered_by_the_known_ones(running: Switchd) -> None:
    status, _, errors = running.ctl_status("add-port", "vhostusr", "vm9", "--socket", "/x", json_output=False)
    assert status != 0
    assert "vhostuser" in errors


def test_a_bad_file_is_not_applied(running: Switchd) -> None:
    said = refused(running, "apply", str(replaced(running, "type: vhostuser", "type: vhostusr")))
    assert "vhostuser" in said
    assert running.metrics().sum("switch_port_up", port="vm1") == 0
    assert running.metrics().ports() == ["vm1"]


def test_validate_needs_no_daemon(folder: Path) -> None:
    switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock")])
    switch.write()
    assert switch.ctl_status("validate", str(switch.file))[0] == 0
    switch.config["ports"] = [vhost_port("vm1", folder / "vm1.sock"), vhost_port("vm1", folder / "vm2.sock")]
    switch.write()
    assert switch.ctl_status("validate", str(switch.file))[0] == 1


def test_a_daemon_that_does_not_run_is_named(folder: Path) -> None:
    switch = Switchd(folder, [])
    status, _, errors = switch.ctl_status("ports", json_output=False)
    assert status == 1
    assert str(switch.control) in errors
