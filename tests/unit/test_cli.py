# SPDX-License-Identifier: Apache-2.0
"""swctl against a real API on a real socket: what people read, what programs read, how errors end.

Why so long: every verb is asked of one service in one way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.cli import cli, main
from switch.cli.entry import VERBS
from switch.cli.look import REASONS
from switch.cli.session import Session
from switch.datapath import Event
from tests.support.daemon import Service, config_text, service
from tests.support.memory_datapath import idle_port

ROOT = Path(__file__).resolve().parents[2]
MAC = "52:54:00:00:00:01"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def api(folder: Path) -> Iterator[Service]:
    with service(folder) as made:
        yield made


@pytest.fixture
def run(api: Service, capsys: pytest.CaptureFixture[str]) -> Run:
    """swctl with these arguments: exit status, output, errors."""

    def swctl(*arguments: str) -> tuple[int, str, str]:
        status = main(["--control", str(api.socket), *arguments])
        return status, *capsys.readouterr()

    return swctl


@pytest.fixture
def ask(run: Run) -> Callable[..., Any]:
    """What swctl says to a program."""

    def asked(*arguments: str) -> Any:
        status, output, errors = run("-o", "json", *arguments)
        assert (status, errors) == (0, "")
        return json.loads(output)

    return asked


def test_show_is_one_screen_that_says_what_is_wrong(api: Service, run: Run) -> None:
    api.datapath.down["vm1"] = "nobody listens on its socket; start the guest"
    status, text, _ = run("show")
    assert status == 0
    for words in ("sw0", "1 of 2 ports up", "no huge pages", "vm1: nobody listens", "waiting_for_peer", "access 10",
                  "WORKER", "BRIDGE", "vm1/0"):  # fmt: skip
        assert words in text, words
    assert len(text.splitlines()) < 40


def test_what_is_unusual_of_a_port_that_works_is_said(api: Service, run: Run) -> None:
    api.datapath.notes["vm1"] = "pages that are written for the guest are logged: it moves to another host"
    for verb in ("show", "ports"):
        assert "! vm1: pages that are written for the guest are logged" in run(verb)[1]
    assert "2 of 2 ports up" in run("show")[1]
    assert "note   pages that are written" in run("port", "vm1")[1]


def test_show_stays_one_screen_with_hundreds_of_ports(
    api: Service, run: Run, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for number in range(300):
        name = f"p{number:03}"
        kind = (
            {"type": "tap", "device": name} if number % 3 else {"type": "vhostuser", "socket": f"{api.folder}/{name}"}
        )
        api.call(api.control.add_port({"name": name, **kind}))
    for number in range(200, 280):
        api.datapath.down[f"p{number}"] = "the guest has not started"
    api.datapath.down["vm1"] = "nobody listens on its socket; start the guest"
    run("set-port", "p007", "--no-enabled")
    text = run("show")[1]
    assert len(text.splitlines()) < 40
    assert "220 of 302 ports up" in text
    for words in (
        "br0     tap          200  146",
        "br0     vhostuser    102   74",
        "8 of 302: not up",
        "! 81 waiting_for_peer: p200, p201,",
        "p207, ...; p200: the guest has not started",
        "! 1 disabled: p007; p007: is",
    ):
        assert words in text, text
    assert len(ask("show")["ports"]) == 302
    assert len(run("ports")[1].splitlines()) == 302 + 4


def test_a_disabled_port_is_not_counted_as_up_and_is_named(run: Run) -> None:
    assert "2 of 2 ports up" in run("show")[1]
    run("set-port", "vm1", "--no-enabled")
    for verb in ("show", "ports"):
        assert "vm1: is disabled, no frame passes: swctl set-port vm1 --enabled" in run(verb)[1]
    assert "1 of 2 ports up" in run("show")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"], ["ports"], ["ports", "-q"], ["port", "vm1"], ["drops"], ["drops", "vm1", "--all"], ["stats"],
        ["workers"], ["queues"], ["fdb"], ["fdb", "show"], ["fdb", "stats"], ["events"], ["history"], ["log"],
        ["explain", "vm1", "ffffffffffff", "525400000001", "0806"],
    ],
)  # fmt: skip
def test_every_look_has_words_and_json_before_and_after_the_verb(run: Run, arguments: list[str]) -> None:
    status, text, errors = run(*arguments)
    assert (status, errors) == (0, "")
    assert text.strip()
    before, after = run("-o", "json", *arguments), run(*arguments, "-o", "json")
    assert before[0] == after[0] == 0
    assert type(json.loads(before[1])) is type(json.loads(after[1]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["events"], "nothing happened yet"),
        (["events", "--kind", "port"], "nothing of that happened lately"),
        (["events", "--port", "vm1"], "nothing of that happened lately"),
        (["history"], "nothing is known of any address"),
        (["history", "52:54:00:00:00:07"], "nothing is known of 52:54:00:00:00:07"),
    ],
)
def test_an_empty_answer_says_what_was_asked_for(run: Run, arguments: list[str], said: str) -> None:
    assert run(*arguments)[1] == said + "\n"


def test_ports_quiet_is_for_scripts(run: Run) -> None:
    assert run("ports", "-q")[1] == "vm1\nvm2\n"


def test_control_is_taken_after_the_verb_too(api: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ports", "-q", "--control", str(api.socket)]) == 0
    assert main(["fdb", "show", "--control", str(api.socket), "-o", "json"]) == 0
    assert '"total": 0' in capsys.readouterr().out


def test_a_port_is_added_with_the_keys_of_the_file(api: Service, run: Run, ask: Callable[..., Any]) -> None:
    options = ("--socket", f"{api.folder}/vm7.sock", "--queues", "2", "--vlan-trunk", "10,20-22", "--vlan-native", "10",
               "--isolated", "--no-packed", "--mac-limit", "5", "--pin-mac", MAC, "--rx-affinity", "0:2")  # fmt: skip
    assert run("add-port", "vhostuser", "vm7", *options) == (0, "", "")
    spec = api.datapath.specs["vm7"]
    assert (spec.queues, spec.isolated, spec.packed, spec.mac_limit) == (2, True, False, 5)
    assert (spec.vlan.trunk, spec.vlan.native, dict(spec.rx_affinity)) == ((10, 20, 21, 22), 10, {0: 2})
    assert ("br0", 10, 0x525400000001) in api.datapath.flows
    status, _, errors = run("add-port", "vhostuser", "vm7", *options)
    assert status == 1
    assert "exists" in errors
    assert ask("add-port", "vhostuser", "vm7", *options, "--exist-ok") == {"changed": False}


def test_a_relative_socket_is_relative_to_the_person(api: Service, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(api.folder)
    assert run("add-port", "vhostuser", "vm7", "--socket", "vm7.sock")[0] == 0
    assert api.datapath.specs["vm7"].socket == f"{api.folder}/vm7.sock"


def test_setting_a_port_keeps_what_is_not_named(api: Service, run: Run) -> None:
    run("set-port", "vm1", "--vlan-trunk", "10,11", "--vlan-native", "10")
    run("set-port", "vm1", "--vlan-trunk", "12")
    vlan = api.datapath.specs["vm1"].vlan
    assert (vlan.access, vlan.trunk, vlan.native) == (None, (12,), 10)
    status, text, _ = run("set-port", "vm1", "--vlan-native", "0", "--mtu", "9000")
    assert (status, "mtu" in text) == (0, True)
    assert (api.datapath.specs["vm1"].vlan.trunk, api.datapath.specs["vm1"].vlan.native) == ((12,), 0)
    run("set-port", "vm1", "--default", "vlan")
    assert api.datapath.specs["vm1"].vlan.trunk is None
    run("set-port", "vm1", "--no-enabled")
    assert not api.datapath.specs["vm1"].enabled
    assert "disabled" in run("ports")[1]


def test_deleting_a_port_and_one_that_is_not_there(run: Run) -> None:
    assert run("del-port", "vm1") == (0, "", "")
    status, _, errors = run("del-port", "vm1")
    assert status == 1
    assert "there is no port vm1" in errors
    assert run("del-port", "vm1", "--missing-ok")[0] == 0


def test_the_mac_table_is_changed_by_hand(api: Service, run: Run, ask: Callable[..., Any]) -> None:
    assert run("fdb", "add", MAC, "vm1", "--vlan", "10") == (0, "", "")
    assert run("fdb", "add", "52:54:00:00:00:02", "--blackhole")[0] == 0
    text = run("fdb")[1]
    assert "drop" in text
    assert ask("fdb", "show", "--owner", "static", "-n", "1")["total"] == 2
    assert "1 more" in run("fdb", "show", "-n", "1")[1]
    assert ask("fdb", "flush", "--owner", "static", "--port", "vm1") == {"count": 1}
    assert run("fdb", "del", "52:54:00:00:00:02")[0] == 0
    assert run("fdb", "del", "52:54:00:00:00:02")[0] == 1
    assert run("fdb", "del", "52:54:00:00:00:02", "--missing-ok")[0] == 0
    assert run("fdb", "add", MAC)[0] == 1


def test_drops_come_with_their_meaning(api: Service, run: Run) -> None:
    api.datapath.counters["vm1"] = idle_port("vm1")
    api.datapath.counters["vm1"].tx_drops["ring_full"] = 7  # type: ignore[index]
    text = run("drops")[1]
    assert "ring_full" in text
    assert "gave no buffers" in text
    assert "gave no buffers" in run("port", "vm1")[1]


def test_what_is_lost_now_is_above_what_was_lost_before(api: Service, ask: Callable[..., Any], run: Run) -> None:
    for name, count in (("vm1", 1000), ("vm2", 0)):
        api.datapath.counters[name] = idle_port(name)
        api.datapath.counters[name].tx_drops["ring_full"] = count  # type: ignore[index]
    old = api.datapath.stats()
    vm2 = idle_port("vm2")
    vm2.tx_drops["ring_full"] = 500  # type: ignore[index]
    api.soon(api.control.rates.add, dataclasses.replace(old, time=old.time - 5))
    api.datapath.counters["vm2"] = vm2
    rows = ask("drops")["drops"]
    assert [(row["port"], row["frames"], row["rate"] > 0) for row in rows] == [("vm2", 500, True), ("vm1", 1000, False)]
    assert "NOW/s" in run("drops")[1]


def test_plan_and_diff_end_with_2_when_something_is_to_do(api: Service, run: Run) -> None:
    path = api.folder / "new.yaml"
    path.write_text(config_text(api.folder))
    assert run("plan", str(path)) == (0, "nothing to change\n", "")
    assert run("diff", str(path)) == (0, "no difference\n", "")
    path.write_text(config_text(api.folder).replace("access: 10", "access: 12").replace("vm2", "vm3"))
    for verb in ("plan", "diff"):
        status, text, _ = run(verb, str(path))
        assert status == 2
        assert "vlan access 10 -> access 12" in text
        assert run(verb, str(path), "-o", "json")[0] == 2
    status, text, _ = run("apply", str(path))
    assert status == 0
    assert set(api.datapath.specs) == {"vm1", "vm3"}
    assert run("plan", str(path))[0] == 0
    status, text, _ = run("rollback")
    assert status == 0
    assert set(api.datapath.specs) == {"vm1", "vm2"}


def test_apply_waits_to_be_confirmed(api: Service, run: Run) -> None:
    path = api.folder / "new.yaml"
    path.write_text(config_text(api.folder).replace("access: 10", "access: 12"))
    assert "within 300 s" in run("apply", str(path), "--confirm", "5m")[1]
    assert "swctl confirm" in run("show")[1]
    assert run("confirm") == (0, "", "")
    assert run("confirm")[0] == 1
    assert run("apply", str(path), "--confirm", "soon")[0] == 1


def test_faults_are_shown_with_their_places(api: Service, run: Run) -> None:
    path = api.folder / "bad.yaml"
    path.write_text("version: 1\nprots: []\nswitch: {pollling: busy}\n")
    for verb in ("apply", "plan", "validate"):
        status, text, errors = run(verb, str(path))
        assert (status, text) == (1, "")
        assert f"{path}:2:1" in errors
        assert f"{path}:3:" in errors
    status, text, _ = run("apply", str(path), "-o", "json")
    assert len(json.loads(text)["error"]["faults"]) == 2
    status, text, _ = run("validate", str(path), "-o", "json")
    assert [fault["line"] for fault in json.loads(text)["error"]["faults"]] == [2, 3]


def test_validate_needs_no_daemon(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "ok.yaml"
    path.write_text(config_text(folder))
    assert main(["validate", "--any-machine", str(path), "--control", "/nowhere"]) == 0
    assert "ok, 2 ports, 1 bridge" in capsys.readouterr().out


def test_save_writes_what_runs_and_keeps_the_old_file(api: Service, run: Run) -> None:
    run("set-port", "vm1", "--mtu", "9000")
    old = api.control.path.read_text()
    assert run("save")[0] == 0
    assert "9000" in api.control.path.read_text()
    assert api.control.path.with_name("switch.yaml.old").read_text() == old
    assert run("save")[1].endswith("says so already\n")  # a second time: what a person wrote is still there
    assert api.control.path.with_name("switch.yaml.old").read_text() == old
    assert run("plan", str(api.control.path))[0] == 0
    assert "9000" in run("save", "-")[1]
    assert run("save", f"{api.folder}/none/x.yaml")[0] == 1


def test_save_goes_through_a_link_and_never_replaces_what_is_no_file(api: Service, run: Run) -> None:
    run("set-port", "vm1", "--mtu", "9000")
    link = api.folder / "link.yaml"
    link.symlink_to(api.control.path)
    api.control.path.chmod(0o640)
    assert run("save", str(link)) == (0, f"written to {link}\n", "")
    assert link.is_symlink()
    assert "9000" in api.control.path.read_text()
    assert api.control.path.stat().st_mode & 0o777 == 0o640
    os.mkfifo(api.folder / "pipe")
    for path in (api.folder / "pipe", "/dev/stdout", "/dev/null"):
        status, text, errors = run("save", str(path))
        assert (status, text) == (1, "")
        assert errors.startswith(f"swctl: cannot write {path}: ")
    assert (api.folder / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("verb", ["validate", "plan", "diff", "apply"])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    api: Service, run: Run, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("switch.config.reading.PATIENCE", 0.05)
    os.mkfifo(api.folder / "pipe")
    with (api.folder / "sparse").open("wb") as out:
        out.truncate(16 << 20)
    rows = [(api.folder / "pipe", "it is a pipe into which nobody writes"),
            (api.folder / "sparse", "it is larger than 8 MiB"), ("/dev/zero", "it is a device")]  # fmt: skip
    for path, reason in rows:
        status, text, errors = run(verb, str(path))
        assert (status, text) == (1, "")
        assert str(path) in errors
        assert reason in errors


def test_events_are_followed_until_the_daemon_stops(api: Service, run: Run) -> None:
    api.soon(api.control.events.append, [Event(1.0, "port_connected", port="vm1", detail="2 queues")])
    closing = threading.Timer(0.5, lambda: api.soon(api.control.events.close))
    closing.start()
    status, text, errors = run("events", "--follow")
    closing.join()
    assert "port_connected  vm1: 2 queues" in text
    assert status == 1
    assert "switchd stopped" in errors


def test_history_of_an_address(api: Service, run: Run, ask: Callable[..., Any]) -> None:
    moved = Event(1.0, "fdb_moved", "br0", "vm2", "vm1", 10, 0x525400000001)
    api.soon(api.control.learning.observe, [moved, Event(2.0, "fdb_learned", "br0", "vm1", "", 10, 5)])
    assert "vm1 -> vm2" in run("history", MAC)[1]
    assert len(ask("history")["events"]) == 2


def test_top_shows_rates_a_given_number_of_times(api: Service, run: Run) -> None:
    status, text, _ = run("top", "-n", "2", "--interval", "0.1")
    assert status == 0
    assert text.count("total") == 2
    lines = run("top", "-n", "2", "--interval", "0.1", "-o", "json")[1].splitlines()
    assert [len(json.loads(line)["ports"]) for line in lines] == [2, 2]


def test_the_log_level_is_changed(run: Run) -> None:
    import logging

    logger = logging.getLogger("switch")
    before = logger.level
    try:
        assert run("log", "debug") == (0, "", "")
        assert run("log")[1] == "debug\n"
    finally:
        logger.setLevel(before)


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prots"], "did you mean 'ports'"),
        (["add-port", "vhostuser"], "NAME"),
        (["ports", "--colour"], "--colour"),
        (["set-port", "vm1"], "at least one option"),
        (["plan", "/no/such/file.yaml"], "/no/such/file.yaml: No such file"),
        (["log", "loud"], "loud"),
        (["add-port", "vhostusr", "x", "--socket", "/x"], "vhostuser"),
        (["port", "nobody"], "there is no port nobody"),
        (["add-port", "tap", "x", "--rx-affinity", "a:b"], "QUEUE:CPU"),
        (["port", ""], "there is no port ''"),
        (["port", "a/b"], "there is no port 'a/b'"),
        (["del-port", "../vm1"], "there is no port '../vm1'"),
        (["port", "vm\udcff"], "not text in UTF-8"),  # the byte 0xff, as it arrives in an argument
        (["fdb", "--mac", "\udcff"], "not text in UTF-8"),
        (["set-port", "vm1", "--default", "vlans"], "did you mean 'vlan'"),
        (["set-port", "vm1", "--default", "device"], "not a key of type 'vhostuser'"),
        (["add-port", "vhostuser", "x", "--socket", ""], "cannot be empty"),
        (["add-port", "vhostuser", "x", "--socket", "/x\nfake line"], "cannot be shown"),
        (["fdb", "--port", "vm1", "flush"], "write it behind"),
        (["explain", "vm1"], "or --to MAC"),
        (["explain", "vm1", "00", "--to", MAC], "or --to MAC"),
        (["explain", "vm1", "--to", "52:54:00"], "'52:54:00' is not a MAC address"),
    ],
)
def test_a_mistake_ends_with_1_and_a_line_that_helps(run: Run, arguments: list[str], words: str) -> None:
    status, text, errors = run(*arguments)
    assert (status, text) == (1, "")
    assert words in errors
    assert len(errors.splitlines()) <= 2


def test_a_daemon_of_another_version_is_an_error_with_a_way_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "ask", lambda *_, **__: {"drops": [{"port": "vm1", "direction": "rx"}]})
    status, text, errors = run("drops")
    assert (status, text) == (1, "")
    assert "has no 'reason'" in errors
    assert "restart the daemon" in errors


def test_no_verb_shows_the_help(run: Run) -> None:
    status, text, errors = run()
    assert (status, errors) == (1, "")
    assert text.startswith("Usage: swctl")


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        ([], "525400000001 525400000009 0800"),
        (["--from", "02-00-00-00-00-02"], "525400000001 020000000002 0800"),
        (["--vlan", "10"], "525400000001 525400000009 8100000a 0800"),
        (["--length", "100"], "525400000001 525400000009 0800" + "00" * 40),
    ],
)
def test_a_frame_is_explained_by_its_addresses(
    api: Service, run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], frame: str
) -> None:
    seen: list[bytes] = []

    def explain(port: str, given: bytes) -> list[str]:
        seen.append(given)
        return ["verdict: none"]

    monkeypatch.setattr(api.datapath, "explain", explain)
    api.datapath.fdb_set("br0", 10, 0x525400000009, "vm1", "learned")
    assert run("explain", "vm1", "--to", MAC, *options) == (0, "verdict: none\n", "")
    expected = bytes.fromhex(frame)
    assert seen == [expected + bytes(60 + (40 if "--length" in options else 0) - len(expected))]


def test_the_mac_table_takes_its_filters_with_and_without_show(api: Service, ask: Callable[..., Any]) -> None:
    api.datapath.fdb_set("br0", 10, 2, "vm1", "static")
    api.datapath.fdb_set("br0", 0, 4, "vm2", "static")
    for filters, found in (
        (["--port", "vm1"], ["vm1"]),
        (["--vlan", "0"], ["vm2"]),
        (["--owner", "held"], []),
        (["--mac", "00:00:00:00:00:02"], ["vm1"]),
        (["--bridge", "br0", "-n", "1"], ["vm2"]),
    ):
        for verb in (["fdb"], ["fdb", "show"]):
            assert [flow["port"] for flow in ask(*verb, *filters)["flows"]] == found, (verb, filters)


@pytest.mark.parametrize("verb", [["ports"], ["events", "--follow"]])
def test_a_daemon_that_dies_while_it_answers_is_an_error_with_a_name(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    import socket

    def die(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"half')
        connection.close()

    path = folder / "dying.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        dying = threading.Thread(target=die, args=(listener,))
        dying.start()
        status = main(["--control", str(path), *verb])
        dying.join()
    assert status == 1
    assert f"switchd at {path} stopped answering" in capsys.readouterr().err


def test_no_daemon_is_named_with_how_to_start_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "none.sock"
    assert main(["ports", "--control", str(path)]) == 1
    errors = capsys.readouterr().err
    assert str(path) in errors
    assert "switchd --config" in errors


def test_a_dead_daemons_socket_is_told_from_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "dead.sock"))
    assert main(["ports", "--control", str(folder / "dead.sock")]) == 1
    assert "died" in capsys.readouterr().err


def test_the_environment_names_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCH_CONTROL", "/x/y.sock")
    assert Session().control == "/x/y.sock"


# ---- the command as a whole ----


def swctl_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "switch.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_every_verb_has_help_and_the_common_options() -> None:
    for verb in VERBS:
        command = cli.get_command(cli.make_context("swctl", ["--help"], resilient_parsing=True), verb)
        assert command is not None
        assert command.help
        assert {"--control", "--output"} <= {option for param in command.params for option in param.opts}


def test_nothing_heavy_is_imported() -> None:
    probe = (
        "import sys; from switch.cli import main; main(['ports', '--control', '/none']); "
        "print(sorted({'pydantic', 'fastapi', 'uvicorn', 'yaml', 'prometheus_client', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    done = swctl_process("completion", shell)
    assert done.returncode == 0
    assert "_SWCTL_COMPLETE" in done.stdout


def test_port_names_are_completed_from_the_daemon(api: Service) -> None:
    done = swctl_process(
        SWITCH_CONTROL=str(api.socket), _SWCTL_COMPLETE="bash_complete", COMP_WORDS="swctl port v", COMP_CWORD="2"
    )
    assert done.stdout.split() == ["plain,vm1", "plain,vm2"]
    verbs = swctl_process(_SWCTL_COMPLETE="bash_complete", COMP_WORDS="swctl add", COMP_CWORD="1")
    assert verbs.stdout.split() == ["plain,add-port"]


def test_a_reader_that_leaves_is_no_error(api: Service) -> None:
    command = f"{sys.executable} -m switch.cli --control {api.socket} show | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


def test_every_drop_reason_of_the_core_is_explained() -> None:
    header = (ROOT / "core_cpp/stats/drop_reason.h").read_text()
    import re

    block = header[header.index("kDropReasonNames") :]
    names = re.findall(r'"([a-z_]+)"', block[: block.index("}")])
    assert set(names) == set(REASONS)
