# SPDX-License-Identifier: Apache-2.0
"""The HTTP API over a real Unix socket: shapes, status codes, errors, streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch.api import models
from switch.datapath import Event
from tests.support.daemon import Service, config_text, service

MAC = "52:54:00:00:00:01"


@pytest.fixture
def api(folder: Path) -> Iterator[Service]:
    with service(folder) as made:
        yield made


def port_of(folder: Path, name: str = "vm7", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "vhostuser", "socket": f"{folder}/{name}.sock", **more}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/show", models.ShowShape),
        ("/v1/ports", models.PortsShape),
        ("/v1/ports/vm1", models.PortDetail),
        ("/v1/drops?all=true", models.DropsShape),
        ("/v1/stats", models.StatsShape),
        ("/v1/workers", models.WorkersShape),
        ("/v1/queues", models.QueuesShape),
        ("/v1/fdb", models.FlowsShape),
        ("/v1/fdb/stats", models.BridgesShape),
        ("/v1/history", models.EventsShape),
        ("/v1/events", models.EventsShape),
        ("/v1/config", models.RunningShape),
        ("/v1/log", models.LevelShape),
    ],
)
def test_every_view_has_its_shape(api: Service, path: str, shape: type[models.Shape]) -> None:
    status, body = api.ask("GET", path)
    assert status == 200
    shape.model_validate(body)


def test_a_port_that_is_down_says_why(api: Service) -> None:
    api.datapath.down["vm1"] = "nobody listens on its socket; start the guest"
    rows = {row["name"]: row for row in api.ask("GET", "/v1/ports")[1]["ports"]}
    assert rows["vm1"]["up"] is False
    assert rows["vm1"]["detail"] == "nobody listens on its socket; start the guest"
    assert rows["vm2"]["up"] is True
    assert rows["vm1"]["vlan"] == {"access": 10, "trunk": None, "native": 0}


def test_a_port_is_added_changed_and_deleted(api: Service) -> None:
    assert api.ask("POST", "/v1/ports", port_of(api.folder)) == (201, {"changed": True})
    assert api.ask("POST", "/v1/ports?exist_ok=true", port_of(api.folder)) == (201, {"changed": False})
    status, body = api.ask("POST", "/v1/ports", port_of(api.folder))
    assert (status, body["error"]["kind"]) == (409, "exists")
    status, body = api.ask("PATCH", "/v1/ports/vm7", {"mtu": 9000})
    assert status == 200
    assert [(step["step"], step["impact"]) for step in body["steps"]] == [("SetPort", "none")]
    assert api.ask("GET", "/v1/ports/vm7")[1]["spec"]["mtu"] == 9000
    assert api.ask("DELETE", "/v1/ports/vm7") == (200, {"changed": True})
    assert api.ask("DELETE", "/v1/ports/vm7?missing_ok=true") == (200, {"changed": False})
    assert api.ask("DELETE", "/v1/ports/vm7")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "words"),
    [
        ("GET", "/v1/ports/nobody", None, 404, "missing", "there is no port nobody"),
        ("GET", "/v1/nothing", None, 404, "request", "GET /v1/nothing: Not Found; /openapi.json"),
        ("GET", "/v1/ports/", None, 404, "request", "Not Found"),  # not sent elsewhere: clients do not follow
        ("POST", "/v1/ports", None, 400, "request", "Content-Type: application/json"),
        ("POST", "/v1/ports", {"name": "x", "type": "vhostusr"}, 422, "config", "vhostuser"),
        ("POST", "/v1/ports", {"name": "x", "type": "vhostuser"}, 422, "config", "socket"),
        ("POST", "/v1/ports", [], 400, "request", "dictionary"),
        ("POST", "/v1/fdb", {"mac": "zz", "port": "vm1"}, 400, "request", "zz"),
        ("POST", "/v1/fdb", {"mac": "01:00:5e:00:00:01", "port": "vm1"}, 409, "fdb", "group address"),
        ("POST", "/v1/fdb", {"mac": MAC, "port": "vm9"}, 404, "missing", "vm9"),
        ("DELETE", f"/v1/fdb?mac={MAC}", None, 404, "missing", MAC),
        ("GET", "/v1/fdb?bridge=br9", None, 404, "missing", "br9"),
        ("GET", "/v1/fdb?limit=x", None, 400, "request", "limit"),
        ("GET", "/v1/fdb?vlan=9999", None, 400, "request", "vlan"),
        ("GET", "/v1/fdb?limit=99999999999999999999", None, 400, "request", "limit"),
        ("PUT", "/v1/log", {"level": "loud"}, 400, "request", "loud"),
        ("POST", "/v1/ports/vm1/explain", {"frame": "xyz"}, 400, "request", "hex"),
        ("POST", "/v1/config/confirm", None, 404, "missing", "confirm"),
        ("POST", "/v1/config/rollback", None, 404, "missing", "go back"),
    ],
)
def test_an_error_has_its_status_kind_and_words(
    api: Service, method: str, path: str, body: Any, status: int, kind: str, words: str
) -> None:
    found, answer = api.ask(method, path, body)
    assert (found, answer["error"]["kind"]) == (status, kind)
    assert words in answer["error"]["message"]
    models.ErrorShape.model_validate(answer)


def test_a_refusal_of_the_datapath_reaches_the_client(api: Service) -> None:
    api.datapath.refuse["vm7"] = "cannot bind /x/vm7.sock: Permission denied"
    status, body = api.ask("POST", "/v1/ports", port_of(api.folder))
    assert (status, body["error"]["kind"]) == (409, "port")
    assert "Permission denied" in body["error"]["message"]


def test_flows_are_added_listed_filtered_flushed_and_deleted(api: Service) -> None:
    status, flow = api.ask("POST", "/v1/fdb", {"mac": MAC, "port": "vm1", "vlan": 10})
    assert (status, flow["bridge"], flow["owner"]) == (201, "br0", "static")
    api.datapath.fdb_set("br0", 10, 0x525400000002, "vm2", "learned")
    body = api.ask("GET", "/v1/fdb")[1]
    assert models.FlowsShape.model_validate(body).total == 2
    assert [row["mac"] for row in body["flows"]] == [MAC, "52:54:00:00:00:02"]
    assert api.ask("GET", "/v1/fdb?owner=static")[1]["total"] == 1
    assert api.ask("GET", "/v1/fdb?port=vm2")[1]["flows"][0]["mac"] == "52:54:00:00:00:02"
    assert api.ask("GET", f"/v1/fdb?mac={MAC.upper()}")[1]["total"] == 1
    limited = api.ask("GET", "/v1/fdb?limit=1")[1]
    assert (limited["total"], len(limited["flows"])) == (2, 1)
    assert api.ask("POST", "/v1/fdb/flush", {})[1] == {"count": 1}
    assert api.ask("DELETE", f"/v1/fdb?mac={MAC}&vlan=10") == (200, {"changed": True})
    assert api.ask("DELETE", f"/v1/fdb?mac={MAC}&vlan=10&missing_ok=true") == (200, {"changed": False})


def test_a_file_is_validated_planned_and_applied(api: Service) -> None:
    text = config_text(api.folder).replace("access: 10", "access: 12")
    request = {"text": text, "path": str(api.folder / "new.yaml")}
    assert api.ask("POST", "/v1/config/validate", request)[1]["ports"] == 2
    plan = api.ask("POST", "/v1/config/plan", request)[1]
    assert [step["text"] for step in plan["steps"]] == ["set port vm1: vlan access 10 -> access 12"]
    assert api.ask("POST", "/v1/config/apply", {**request, "confirm": 60})[1]["steps"] == plan["steps"]
    assert api.ask("GET", "/v1/config")[1]["confirm_until"] > 0
    assert api.ask("POST", "/v1/config/rollback")[0] == 200
    assert api.ask("POST", "/v1/config/plan", request)[1]["steps"] == plan["steps"]


def test_faults_of_a_file_come_with_their_places(api: Service) -> None:
    status, body = api.ask("POST", "/v1/config/apply", {"text": "version: 1\nprots: []\n", "path": "/x/a.yaml"})
    assert status == 422
    (fault,) = body["error"]["faults"]
    assert (fault["file"], fault["line"], fault["column"]) == ("/x/a.yaml", 2, 1)
    assert "ports" in fault["reason"]
    assert api.ask("GET", "/v1/config")[1]["last_apply_success"] is False


def test_events_stream_as_lines_until_the_daemon_stops(api: Service) -> None:
    api.soon(api.control.events.append, [Event(1.0, "port_connected", port="vm1")])
    connection = api.connect()
    connection.request("GET", "/v1/events?follow=1&kind=port")
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("application/x-ndjson")
    assert json.loads(answer.readline())["kind"] == "port_connected"
    api.soon(api.control.events.append, [Event(2.0, "config_changed"), Event(3.0, "port_closed", port="vm1")])
    assert json.loads(answer.readline())["kind"] == "port_closed"
    api.soon(api.control.events.close)
    assert answer.read() == b""
    connection.close()


def test_a_follower_that_left_is_forgotten(api: Service) -> None:
    connection = api.connect()
    connection.request("GET", "/v1/events?follow=1&limit=0")
    answer = connection.getresponse()
    answer.close()
    connection.close()
    assert connection.sock is None
    api.soon(api.control.events.append, [Event(1.0, "port_connected", port="vm1")] * 5)
    assert api.ask("GET", "/v1/events")[1]["events"][-1]["sequence"] == 5


def test_metrics_are_on_the_control_socket_too(api: Service) -> None:
    status, text = api.ask("GET", "/metrics")
    assert status == 200
    assert 'switch_port_up{port="vm1"} 1.0' in text


def test_explain_takes_hex_in_any_dress(api: Service) -> None:
    status, body = api.ask("POST", "/v1/ports/vm1/explain", {"frame": "ff:ff:ff:ff:ff:ff 5254.0000.0001 0806"})
    assert status == 200
    assert body["steps"][0] == "14 bytes enter at vm1"


def test_the_log_level_changes(api: Service) -> None:
    import logging

    logger = logging.getLogger("switch")
    before = logger.level
    try:
        assert api.ask("PUT", "/v1/log", {"level": "DEBUG"}) == (200, {"level": "debug"})
        assert api.ask("GET", "/v1/log") == (200, {"level": "debug"})
    finally:
        logger.setLevel(before)


def test_openapi_describes_every_route(api: Service) -> None:
    status, document = api.ask("GET", "/openapi.json")
    assert status == 200
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], f"{method} {path}"
            assert "422" in operation["responses"]


def test_two_requests_on_one_connection(api: Service) -> None:
    connection = api.connect()
    for _ in range(2):
        connection.request("GET", "/v1/ports")
        assert connection.getresponse().read()
    connection.close()
