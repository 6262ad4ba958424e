# SPDX-License-Identifier: Apache-2.0
"""The API over TCP of a real daemon, as people use it: swctl, curl, a reload, and what strangers can do to it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from switch.cli import main
from switch.testing import Guest
from tests.interop import needs
from tests.interop.process import wait_until
from tests.interop.switchd import Switchd, entry_point, free_port, vhost_port
from tests.support.pki import Pki

MACS = [bytes.fromhex(f"5254000000{number:02x}") for number in (1, 2)]
FRAME = b"\xff" * 6 + MACS[0] + b"\x88\xb5" + bytes(46)


@pytest.fixture(scope="module")
def pki(module_folder: Path) -> Pki:
    return Pki(module_folder / "pki")


class Remote:
    """A daemon with two guests, reached over TCP."""

    def __init__(self, switch: Switchd, pki: Pki, port: int, guests: list[Guest]) -> None:
        self.switch = switch
        self.pki = pki
        self.port = port
        self.guests = guests
        self.url = f"https://localhost:{port}"

    def environment(self, token: str = "ops", **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SWITCH_")}
        files = {"TOKEN_FILE": str(self.pki.folder / f"{token}.token"), "CACERT": str(self.pki.ca), "CONTROL": self.url}
        chosen = {f"SWITCH_{key}": value for key, value in {**files, **more}.items()}
        return {**kept, **chosen, "NO_COLOR": "1"}

    def swctl(self, *arguments: str, token: str = "ops", **more: str) -> tuple[int, str, str]:
        """Status, output and errors. In this process: another Python for each would be most of the time."""
        output, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment(token, **more), clear=True),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            status = main(arguments)
        return status, output.getvalue(), errors.getvalue()

    def ask(self, *arguments: str, token: str = "ops") -> Any:
        status, output, errors = self.swctl("-o", "json", *arguments, token=token)
        assert status == 0, errors
        return json.loads(output)

    def curl(self, *arguments: str, token: str = "ops") -> tuple[int, str]:
        """Status of the answer (0: none), and what curl wrote."""
        header = (
            ("-H", f"Authorization: Bearer {(self.pki.folder / f'{token}.token').read_text().strip()}") if token else ()
        )
        done = subprocess.run(
            [needs.program("curl", "curl"), "-sS", "-w", "\n%{http_code}", *header, *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body + done.stderr

    def frames_flow(self) -> None:
        one, two = self.guests
        one.send(FRAME)
        two.expect(FRAME)

    def reload(self) -> None:
        self.switch.write()
        assert self.switch.process is not None
        self.switch.process.signal(signal.SIGHUP)


@pytest.fixture
def remote(folder: Path, pki: Pki) -> Iterator[Remote]:
    port = free_port()
    ports = [vhost_port(name, folder / f"{name}.sock") for name in ("vm1", "vm2")]
    with contextlib.ExitStack() as stack:
        switch = Switchd(folder, ports)
        switch.config["control"]["tcp"] = pki.section(listen=f"127.0.0.1:{port}")
        stack.enter_context(switch)
        guests = [stack.enter_context(Guest(one["socket"])) for one in ports]
        switch.wait_up("vm1", "vm2")
        yield Remote(switch, pki, port, guests)


LOOKS = (
    ["show"], ["ports"], ["port", "vm1"], ["drops"], ["stats"], ["workers"], ["queues"], ["fdb"], ["fdb", "stats"],
    ["events"], ["history"], ["log"], ["explain", "vm1", "--to", "ff:ff:ff:ff:ff:ff"], ["top", "-n", "1", "-i", "0.1"],
)  # fmt: skip


def test_every_verb_works_from_another_machine(remote: Remote) -> None:
    for look in LOOKS:
        remote.ask(*look, token="eye")
    status, _, errors = remote.swctl("set-port", "vm1", "--mtu", "1400", token="eye")
    assert status == 1
    assert "token eye may only read" in errors
    folder = remote.switch.folder
    assert remote.swctl("add-port", "vhostuser", "vm7", "--socket", f"{folder}/vm7.sock") == (0, "", "")
    assert remote.swctl("set-port", "vm7", "--mtu", "1400")[0] == 0
    assert remote.swctl("fdb", "add", MACS[1].hex(":"), "vm7")[0] == 0
    assert "relative path" in remote.swctl("add-port", "vhostuser", "vm8", "--socket", "vm8.sock")[2]
    status, text, _ = remote.swctl("save", "-")
    assert status == 0
    here = remote.pki.folder / "changed.yaml"
    here.write_text(text.replace("mtu: 1400", "mtu: 1300"))
    assert remote.swctl("validate", str(here))[0] == 0
    assert remote.swctl("plan", str(here))[0] == remote.swctl("diff", str(here))[0] == 2
    assert remote.swctl("apply", str(here), "--confirm", "60s")[0] == 0
    assert remote.swctl("confirm") == (0, "", "")
    assert remote.ask("port", "vm7")["spec"]["mtu"] == 1300
    assert remote.swctl("rollback")[0] == 0
    assert remote.swctl("del-port", "vm7") == (0, "", "")
    assert "name a FILE" in remote.swctl("save")[2]
    assert remote.swctl("save", str(remote.pki.folder / "saved.yaml"))[0] == 0
    assert "vm7" not in (remote.pki.folder / "saved.yaml").read_text()
    said = [event["detail"] for event in remote.ask("events", "--kind", "config_changed")["events"]]
    assert any("add port vm7" in detail and "by ops from 127.0.0.1:" in detail for detail in said)
    remote.frames_flow()


def test_streams_come_through(remote: Remote) -> None:
    def started(*arguments: str) -> subprocess.Popen[str]:
        command = [entry_point("swctl"), *arguments]
        return subprocess.Popen(command, env=remote.environment(), stdout=subprocess.PIPE, text=True)

    with started("-o", "json", "events", "--follow", "-n", "0", "--kind", "config") as events:
        with started("-o", "json", "capture", "vm1", "-c", "1") as capture:
            assert capture.stdout is not None
            wait_until("both are there", lambda: remote.switch.metrics().sum("switch_api_connections") >= 2)

            def captured() -> bool:
                remote.frames_flow()
                return capture.poll() is not None

            wait_until("a frame is captured", captured)
            assert json.loads(capture.stdout.readline())["data"] == FRAME.hex()
        remote.swctl("set-port", "vm1", "--mtu", "1400")
        assert events.stdout is not None
        assert "mtu 0 -> 1400, by ops" in json.loads(events.stdout.readline())["detail"]
        events.terminate()
    wait_until("nothing is left", lambda: remote.switch.metrics().sum("switch_api_connections") == 0)


def test_curl_and_prometheus_need_no_more_than_a_header(remote: Remote) -> None:
    ca = ["--cacert", str(remote.pki.ca)]
    status, body = remote.curl(*ca, f"{remote.url}/v1/ports")
    assert (status, [port["name"] for port in json.loads(body)["ports"]]) == (200, ["vm1", "vm2"])
    status, body = remote.curl(*ca, f"{remote.url}/metrics", token="eye")
    assert status == 200
    assert "switch_api_listening 1.0" in body
    status, body = remote.curl(*ca, f"{remote.url}/v1/ports", token="")
    assert (status, json.loads(body)["error"]["kind"]) == (401, "unauthorized")
    status, body = remote.curl(*ca, "-X", "DELETE", f"{remote.url}/v1/ports/vm1", token="eye")
    assert (status, json.loads(body)["error"]["kind"]) == (403, "forbidden")
    assert remote.curl(f"{remote.url}/v1/ports")[0] == 0, "without the CA curl does not even send the token"
    status, body = remote.curl(f"http://localhost:{remote.port}/v1/ports", token="")
    assert status == 400
    assert "use https" in body


def test_what_people_get_wrong_is_answered_by_a_sentence(remote: Remote, folder: Path) -> None:
    other = remote.pki.authority("other")
    wrong = folder / "wrong.token"
    wrong.write_text("x" * 40)
    for settings, words in (
        ({"CACERT": str(other)}, "its certificate is not trusted"),
        ({"CACERT": ""}, "name its CA with --cacert or $SWITCH_CACERT"),
        ({"CACERT": str(folder / "none.pem")}, f"cannot read --cacert {folder}/none.pem: no such file"),
        ({"CACERT": str(wrong)}, f"--cacert {wrong}: it is not what belongs there"),
        ({"CONTROL": f"https://127.0.0.2:{remote.port}"}, "nobody listens there; control.tcp.listen"),
        ({"CONTROL": "https://no.such.host.invalid:1"}, "the name no.such.host.invalid is not known"),
        ({"CONTROL": f"https://localhost:{remote.switch.metrics_port}"}, "it does not speak TLS"),
        ({"CONTROL": f"http://localhost:{remote.port}"}, "the API over TCP is https only; write https://HOST:PORT"),
        ({"CONTROL": f"https://localhost:{remote.port}/v1"}, "cannot name a daemon: write https://HOST:PORT"),
        ({"CONTROL": f"localhost:{remote.port}"}, f"write https://localhost:{remote.port}"),
        ({"TOKEN_FILE": ""}, "wants a token: name its file with --token-file or $SWITCH_TOKEN_FILE"),
        ({"TOKEN_FILE": str(folder / "none")}, f"cannot read the token file {folder}/none: no such file"),
        ({"TOKEN_FILE": str(remote.switch.file)}, "holds no token: one line without spaces"),
        ({"TOKEN_FILE": str(wrong)}, "the token is not one of control.tcp.tokens, or not any more"),
        ({"KEY": str(wrong)}, "--key goes with --cert"),
    ):
        status, output, errors = remote.swctl("ports", **settings)
        assert (status, output) == (1, ""), settings
        assert words in errors, (settings, errors)
        assert len(errors.splitlines()) == 1
    remote.pki.issue("elsewhere", "DNS:elsewhere.example")
    tcp = remote.switch.config["control"]["tcp"]
    tcp |= {key: str(remote.pki.folder / f"elsewhere.{end}") for key, end in (("certificate", "pem"), ("key", "key"))}
    remote.reload()
    asked = lambda: remote.swctl("ports")[2]  # noqa: E731
    assert "its certificate is for another name" in wait_until("the new certificate is there", asked)


def test_a_certificate_of_the_client_is_asked_for(remote: Remote) -> None:
    remote.pki.issue("client", usage="clientAuth")
    remote.switch.config["control"]["tcp"]["client_ca"] = str(remote.pki.ca)
    remote.reload()
    errors = wait_until("a certificate is asked for", lambda: remote.swctl("ports")[2])
    assert "--cert FILE --key FILE" in errors
    files = {"CERT": str(remote.pki.folder / "client.pem"), "KEY": str(remote.pki.folder / "client.key")}
    assert remote.swctl("ports", "-q", **files) == (0, "vm1\nvm2\n", "")
    assert remote.swctl("ports", **{**files, "KEY": str(remote.pki.folder / "server.key")})[0] == 1


def test_a_reload_takes_new_files_and_breaks_nothing(remote: Remote) -> None:
    command = [entry_point("swctl"), "-o", "json", "events", "--follow", "-n", "0", "--kind", "config"]
    with subprocess.Popen(command, env=remote.environment("eye"), stdout=subprocess.PIPE, text=True) as following:
        wait_until("it follows", lambda: remote.switch.metrics().sum("switch_api_connections") == 1)
        remote.pki.issue("server", "DNS:localhost")
        remote.reload()
        assert following.stdout is not None
        said = [json.loads(following.stdout.readline())["detail"] for _ in range(2)]
        assert said[0].startswith(f"set listener control.tcp at 127.0.0.1:{remote.port}: certificate ")
        remote.switch.config["control"]["tcp"]["key"] = "/none.key"
        remote.reload()
        assert "/none.key: cannot be read" in json.loads(following.stdout.readline())["detail"]
        assert remote.ask("show")["config"]["last_apply_success"] is False
        following.terminate()
    remote.frames_flow()


def test_what_cannot_be_served_at_the_start_stops_nothing(folder: Path, pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        switch = Switchd(folder, [vhost_port("vm1", folder / "vm1.sock")])
        switch.config["control"]["tcp"] = pki.section(listen=f"127.0.0.1:{port}")
        with switch, Guest(str(folder / "vm1.sock")):
            switch.wait_up("vm1")
            assert f"cannot listen for the API on 127.0.0.1:{port}: address already in use" in switch.log.read_text()
            assert any("address already in use" in warning for warning in switch.ctl("show")["warnings"])
            assert switch.metrics().sum("switch_api_listening") == 0
            other.close()
            wait_until("it is served", lambda: switch.metrics().sum("switch_api_listening") == 1, 40.0)
            assert switch.ctl("show")["warnings"] == [] or "API" not in str(switch.ctl("show")["warnings"])


def test_the_check_of_a_file_tries_its_certificate(folder: Path, pki: Pki) -> None:
    switch = Switchd(folder, [])
    switch.config["control"]["tcp"] = pki.section(listen="127.0.0.1:9481", key=str(pki.folder / "none.key"))
    switch.write()
    for command in (["switchd", "--check", "--config"], ["swctl", "validate"]):
        done = subprocess.run(
            [entry_point(command[0]), *command[1:], str(switch.file)], capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"control.tcp.key: {pki.folder}/none.key: cannot be read" in done.stderr
        assert "Traceback" not in done.stderr
    assert main(["validate", "--any-machine", str(switch.file)]) == 0


def test_thousands_of_strangers_stop_neither_frames_nor_whoever_knows_the_token(remote: Remote) -> None:
    def descriptors() -> int:
        assert remote.switch.process is not None
        return len(list(Path(f"/proc/{remote.switch.process.pid}/fd").iterdir()))

    remote.frames_flow()
    before = descriptors()
    words = (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", os.urandom(300))
    crowd: list[socket.socket] = []
    try:
        for number in range(2000):
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", remote.port))
            with contextlib.suppress(OSError):
                one.send(words[number % len(words)])
            crowd.append(one)
            if len(crowd) > 500:
                crowd.pop(0).close()
            if number % 500 == 250:
                remote.frames_flow()
                assert remote.switch.ctl("ports")["ports"], "the control socket answers"
        assert remote.ask("ports")["ports"], "and whoever has the token gets in"
        assert descriptors() <= before + 70
    finally:
        for one in crowd:
            one.close()
    wait_until("they are gone", lambda: remote.switch.metrics().sum("switch_api_connections") == 0, 60.0)
    assert descriptors() <= before
    assert remote.switch.metrics().sum("switch_api_refused_total") > 0
    log = remote.switch.log.read_text()
    assert "Traceback" not in log
    assert log.count("control.tcp: refused") < 30, "the log is not theirs"
    remote.frames_flow()
