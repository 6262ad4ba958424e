# SPDX-License-Identifier: Apache-2.0
"""Names that people, scripts and dashboards rely on: verbs with their options, `-o json`, metrics with their labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from switch.capture import Captured
from switch.cli import cli, main
from switch.cli.entry import VERBS
from switch.config import ANY_MACHINE, parse_config
from switch.metrics import FAMILIES
from tests.support.daemon import Service, config_text, service

# Verb -> its arguments and options; what else there is may grow, these stay.
PROMISED = {
    "show": "", "ports": "", "port": "name", "drops": "", "stats": "", "workers": "", "queues": "", "top": "",
    "add-port": "kind name --socket --socket-owner --queues --device --vlan-access --exist-ok",
    "set-port": "name", "del-port": "name --missing-ok",
    "fdb": "show add del flush stats",
    "capture": "name -w --filter --drops", "explain": "name frame",
    "validate": "file", "diff": "file", "plan": "file", "apply": "file --confirm", "confirm": "", "rollback": "",
    "save": "file", "events": "--follow", "log": "level",
}  # fmt: skip

# Metric -> its labels, exactly; switch_port_info may have more.
METRICS = {
    "switch_build_info": None,
    "switch_port_up": "port",
    "switch_port_receive_frames_total": "port queue",
    "switch_port_receive_bytes_total": "port queue",
    "switch_port_transmit_frames_total": "port queue",
    "switch_port_transmit_bytes_total": "port queue",
    "switch_port_notifications_total": "port direction queue",
    "switch_port_drops_total": "port direction reason",
    "switch_fdb_entries": "bridge owner",
    "switch_fdb_events_total": "bridge event",
    "switch_worker_busy_seconds_total": "worker",
    "switch_worker_idle_seconds_total": "worker",
    "switch_worker_batch_frames": "worker",
    "switch_config_last_apply_success": "",
    "switch_config_hash_info": "hash",
    "switch_restarts_total": "",
}


@pytest.fixture
def api(folder: Path) -> Iterator[Service]:
    with service(folder) as made:
        yield made


@pytest.mark.parametrize("verb", PROMISED)
def test_a_verb_takes_what_is_promised(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    taken = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        taken |= set(command.list_commands(click.Context(command)))
    assert {*PROMISED[verb].split(), "--control", "-o"} <= taken


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_its_labels(name: str) -> None:
    labels = METRICS[name]
    assert labels is None or FAMILIES[name].labels == tuple(labels.split())


def test_a_port_can_be_joined_with_what_it_is() -> None:
    assert {"port", "type", "bridge"} <= set(FAMILIES["switch_port_info"].labels)


def test_every_verb_answers_a_program_in_json(api: Service, capsys: pytest.CaptureFixture[str]) -> None:
    folder, mac = api.folder, "52:54:00:00:00:01"
    changed = folder / "changed.yaml"
    changed.write_text(config_text(folder).replace("access: 10", "access: 12"))
    rows = [
        "show", "ports", "port vm1", "drops", "stats", "workers", "queues", "top -n 1 -i 0.1", "capture vm1",
        "explain vm1 ffffffffffff5254000000010806",
        f"add-port vhostuser vm7 --socket {folder}/vm7.sock", "set-port vm7 --mtu 9000",
        f"fdb add {mac} vm7", "fdb", "fdb show", "fdb stats", f"fdb del {mac}", "fdb flush", f"history {mac}",
        "del-port vm7", f"plan {changed}", f"diff {changed}", f"apply {changed} --confirm 60s", "confirm", "rollback",
        f"save {folder}/saved.yaml", "save -", f"validate --any-machine {changed}", "events", "log", "log info",
        "completion bash",
    ]  # fmt: skip
    assert {row.split()[0] for row in rows} == set(VERBS)
    api.datapath.passing = [Captured(1, "rx", 0, "", 60, bytes(60))]
    for row in rows:
        status = main([*row.split(), "-o", "json", "--control", str(api.socket)])
        output, errors = capsys.readouterr()
        assert (status, errors) == (2 if row.startswith(("plan", "diff")) else 0, ""), row
        assert isinstance(json.loads(output), dict), row


def test_the_file_of_the_first_page_is_read(folder: Path) -> None:
    config = parse_config(
        """
version: 1
switch:  {name: sw0, polling: adaptive, workers: [{cpu: 2}, {cpu: 3}], memory: {hugepages: auto, size: 256M}}
control: {socket: /run/switch/control.sock, mode: "0660", group: switch}
metrics: {listen: "127.0.0.1:9480"}
bridges: [{name: br0, ageing: 300s, mac_limit: 65536}]
ports:
  - {name: vm1, type: vhostuser, socket: /run/switch/vm1.sock, socket_owner: switch, queues: 2, vlan: {access: 10}}
  - {name: vm2, type: vhostuser, socket: /run/vm/vm2.sock, socket_owner: peer, vlan: {trunk: [10, 20], native: 10}}
  - {name: uplink, type: afxdp, device: eth1}
""",
        machine=ANY_MACHINE,
    )
    assert [port.name for port in config.ports] == ["vm1", "vm2", "uplink"]
