# SPDX-License-Identifier: Apache-2.0
"""The routes of the control API. Every route is a few lines: ask Control, give the answer its shape."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from switch.api import models, views
from switch.api.gate import describe_access
from switch.api.streams import CaptureResponse
from switch.config import config_hash
from switch.config.values import format_mac, parse_mac
from switch.control import Control, Exists, Missing
from switch.datapath import FdbEntry, FdbQuery
from switch.errors import ConfigError, FdbError, NotBuilt, PortError, SwitchError
from switch.events import Follower, Record
from switch.explain import consequences
from switch.learning import Flow
from switch.metrics import version

LEVELS = ("debug", "info", "warning", "error")

DESCRIPTION = """
The control API of switchd, served on a Unix socket whose file mode and group are the access control:

    curl --unix-socket /run/switch/control.sock http://localhost/v1/show

Over TCP, where the configuration has `control.tcp`, it is https, and needs a token. What a route needs is the role at
its security scheme: `read` or `write`. Without a token the answer is 401, with one that may not do this 403:

    curl --cacert ca.pem -H "Authorization: Bearer $(cat token)" https://switch.example:9481/v1/show

Direction is the switch's: rx enters the switch, tx leaves it. Every error has the shape `ErrorShape`.
"""

PORT_EXAMPLES: dict[str, Any] = {
    "vhost-user": {
        "value": {"name": "vm7", "type": "vhostuser", "socket": "/run/switch/vm7.sock", "vlan": {"access": 10}}
    },
    "tap": {"value": {"name": "host0", "type": "tap", "device": "swtap0"}},
}


def make_app(control: Control, registry: CollectorRegistry) -> FastAPI:
    """The application over a Control that was started on the loop that serves it."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": models.ErrorShape} for status in (400, 401, 403, 404, 409, 422, 429, 501)
    }
    app = FastAPI(
        title="switchd control API", version=version(), description=DESCRIPTION, responses=errors, docs_url=None,
        redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    _errors(app)
    _show(app, control)
    _ports(app, control)
    _flows(app, control)
    _config(app, control)
    _watch(app, control, registry)
    describe_access(app)
    return app


def _show(app: FastAPI, control: Control) -> None:
    @app.get("/v1/show", summary="Everything on one screen", tags=["show"])
    async def show() -> models.ShowShape:
        return views.Snapshot(control).show()

    @app.get("/v1/drops", summary="Where frames were lost, and why", tags=["show"])
    async def drops(
        port: str | None = None, everything: Annotated[bool, Query(alias="all", description="zeros too")] = False
    ) -> models.DropsShape:
        if port is not None:
            control.spec(port)
        return models.DropsShape(drops=views.Snapshot(control).drops(port, everything))

    @app.get("/v1/stats", summary="Every counter", tags=["show"])
    async def stats() -> models.StatsShape:
        snapshot = views.Snapshot(control)
        return models.StatsShape(
            time=snapshot.stats.time,
            plan_generation=snapshot.stats.plan_generation,
            ports=snapshot.port_stats(),
            workers=snapshot.workers(),
            bridges=snapshot.bridges(),
        )

    @app.get("/v1/workers", summary="The polling threads", tags=["show"])
    async def workers() -> models.WorkersShape:
        return models.WorkersShape(workers=views.Snapshot(control).workers())

    @app.get("/v1/queues", summary="Which worker polls which queue", tags=["show"])
    async def queues() -> models.QueuesShape:
        return models.QueuesShape(queues=views.Snapshot(control).queues())


def _ports(app: FastAPI, control: Control) -> None:
    @app.get("/v1/ports", summary="All ports", tags=["ports"])
    async def ports() -> models.PortsShape:
        return models.PortsShape(ports=views.Snapshot(control).ports())

    @app.post("/v1/ports", summary="Add a port: the keys of `ports[]` in the file", tags=["ports"], status_code=201)
    async def add_port(
        request: Annotated[dict[str, Any], Body(openapi_examples=PORT_EXAMPLES)], exist_ok: bool = False
    ) -> models.ChangedShape:
        return models.ChangedShape(changed=await control.add_port(request, exist_ok=exist_ok))

    @app.get("/v1/ports/{name}", summary="Everything about a port", tags=["ports"])
    async def port(name: str) -> models.PortDetail:
        return views.Snapshot(control).port(name)

    @app.patch("/v1/ports/{name}", summary="Change keys of a port; null: back to the default", tags=["ports"])
    async def set_port(name: str, request: dict[str, Any]) -> models.StepsShape:
        return models.StepsShape(steps=views.steps(await control.set_port(name, request)))

    @app.delete("/v1/ports/{name}", summary="Delete a port", tags=["ports"])
    async def del_port(name: str, missing_ok: bool = False) -> models.ChangedShape:
        return models.ChangedShape(changed=await control.del_port(name, missing_ok=missing_ok))

    @app.post("/v1/ports/{name}/explain", summary="What would happen to a frame that enters here", tags=["ports"])
    async def explain(name: str, request: models.ExplainRequest) -> models.ExplainShape:
        control.spec(name)
        text = "".join(character for character in request.frame if character not in " :.-\n\t")
        try:
            frame = bytes.fromhex(text.removeprefix("0x"))
        except ValueError:
            raise BadRequest("frame: not hex; give the bytes of an Ethernet frame, two digits each") from None
        steps = control.datapath.explain(name, frame)
        status = {port.name: port for port in control.datapath.ports()}
        notes = consequences(name, frame, steps, control.reconciler.ports, status)
        return models.ExplainShape(port=name, steps=[*steps, *notes])

    @app.get("/v1/ports/{name}/capture", summary="Frames of the port while they pass; streams NDJSON or pcapng",
             tags=["ports"], response_class=StreamingResponse)  # fmt: skip
    async def capture(
        name: str, direction: Literal["rx", "tx", "both"] = "both",
        drops: Annotated[bool, Query(description="only frames that are dropped")] = False,
        snaplen: Annotated[int, Query(ge=14, le=262_144)] = 262_144,
        count: Annotated[int | None, Query(ge=1, description="stop after so many")] = None,
        format: Literal["json", "pcapng"] = "json",
    ) -> StreamingResponse:  # fmt: skip
        control.spec(name)
        number = control.datapath.capture_start(name, direction, drops, snaplen)
        return CaptureResponse(control.datapath, number, name, count, format == "pcapng")


def _flows(app: FastAPI, control: Control) -> None:
    @app.get("/v1/fdb", summary="The MAC table", tags=["fdb"], response_model=models.FlowsShape)
    async def flows(
        bridge: str | None = None, port: str | None = None, vlan: Annotated[int | None, Query(ge=0, le=4094)] = None,
        mac: str | None = None, owner: str | None = None,
        limit: Annotated[int, Query(ge=0, le=1 << 30, description="0: all")] = 0,
    ) -> Response:  # fmt: skip
        wanted_mac = None if mac is None else _mac(mac)
        bridges = [control.only_bridge(bridge)] if bridge else sorted(control.reconciler.bridges)
        if port is not None:
            control.spec(port)

        def listing() -> bytes:
            found: list[FdbEntry] = []
            total = 0
            for name in bridges:
                most = limit - len(found) if limit else None
                entries, matched = control.datapath.fdb(name, FdbQuery(port or "", vlan, wanted_mac, owner, most))
                found += entries
                total += matched
            return views.flows_json(found, total)

        return Response(await asyncio.to_thread(listing), media_type="application/json")

    @app.post("/v1/fdb", summary="Pin a MAC address to a port", tags=["fdb"], status_code=201)
    async def add_flow(request: models.FlowRequest) -> models.FlowShape:
        bridge = request.bridge or (control.spec(request.port).bridge if request.port else control.only_bridge(None))
        flow = Flow(bridge, request.vlan, _mac(request.mac), request.port, request.owner)
        await control.add_flow(flow)
        return models.FlowShape(
            bridge=bridge, vlan=flow.vlan, mac=format_mac(flow.mac), port=flow.port, owner=flow.owner, age=0
        )

    @app.delete("/v1/fdb", summary="Remove an entry of any owner", tags=["fdb"])
    async def delete_flow(
        mac: str, vlan: Annotated[int, Query(ge=0, le=4094)] = 0, bridge: str | None = None, missing_ok: bool = False
    ) -> models.ChangedShape:
        name, value = control.only_bridge(bridge), _mac(mac)
        gone = await control.delete_flow(name, vlan, value)
        if not gone and not missing_ok:
            raise Missing(f"there is no entry for {format_mac(value)} in VLAN {vlan} of bridge {name}")
        return models.ChangedShape(changed=gone)

    @app.post("/v1/fdb/flush", summary="Remove learned entries", tags=["fdb"])
    async def flush(request: Annotated[models.FlushRequest, Body()]) -> models.CountShape:
        return models.CountShape(count=await control.flush(request.bridge, request.port, request.vlan, request.owner))

    @app.get("/v1/fdb/stats", summary="Counts and limits of the MAC tables", tags=["fdb"])
    async def flow_stats() -> models.BridgesShape:
        return models.BridgesShape(bridges=views.Snapshot(control).bridges())

    @app.get("/v1/history", summary="Where was this MAC address", tags=["fdb"], response_model_exclude_none=True)
    async def history(
        mac: str | None = None, bridge: str | None = None, limit: Annotated[int, Query(ge=1, le=100_000)] = 1000
    ) -> models.EventsShape:
        name = control.only_bridge(bridge) if bridge else None
        found = control.learning.history(name, None if mac is None else _mac(mac), limit)
        return models.EventsShape(events=[_event(Record(number, event)) for number, event in enumerate(found, 1)])


def _config(app: FastAPI, control: Control) -> None:
    @app.get("/v1/config", summary="What runs, as a configuration file", tags=["config"])
    async def running() -> models.RunningShape:
        return models.RunningShape(**views.config_state(control), yaml=control.running_yaml())

    @app.post("/v1/config/validate", summary="Check a file on this machine", tags=["config"])
    async def validate(request: models.ConfigText) -> models.ValidShape:
        config = control.parse(request.text, request.path)
        return models.ValidShape(ports=len(config.ports), bridges=len(config.all_bridges()), hash=config_hash(config))

    @app.post("/v1/config/plan", summary="What applying a file would do", tags=["config"])
    async def plan(request: models.ConfigText) -> models.PlanShape:
        planned = await control.preview(control.parse(request.text, request.path), exact=request.exact)
        return models.PlanShape(
            steps=views.steps(planned.steps), restart=views.restarts(planned.restart), kept=planned.kept
        )

    @app.post("/v1/config/apply", summary="Make the switch be as a file says: all or nothing", tags=["config"])
    async def apply(request: models.ApplyText) -> models.PlanShape:
        try:
            config = control.parse(request.text, request.path)
        except ConfigError as error:
            control.refused(error)
            raise
        planned = await control.apply(config, path=Path(request.path), exact=request.exact, confirm=request.confirm)
        return models.PlanShape(
            steps=views.steps(planned.steps), restart=views.restarts(planned.restart), kept=planned.kept
        )

    @app.post("/v1/config/confirm", summary="Keep what `apply` with `confirm` did", tags=["config"])
    async def confirm() -> models.ChangedShape:
        control.confirm()
        return models.ChangedShape(changed=True)

    @app.post("/v1/config/rollback", summary="Go back to what ran before the last apply", tags=["config"])
    async def rollback() -> models.StepsShape:
        return models.StepsShape(steps=views.steps(await control.rollback()))


def _watch(app: FastAPI, control: Control, registry: CollectorRegistry) -> None:
    @app.get("/v1/events", summary="What happened; `follow` streams NDJSON", tags=["watch"],
             response_model=models.EventsShape, response_model_exclude_none=True)  # fmt: skip
    async def events(
        follow: bool = False, limit: Annotated[int, Query(ge=0, le=20_000)] = 1000, since: int = 0,
        kind: Annotated[str, Query(description="a kind, or the start of kinds: fdb, port")] = "", port: str = "",
    ) -> Any:  # fmt: skip
        recent = control.events.recent(limit, since, kind, port)
        if not follow:
            return models.EventsShape(events=[_event(record) for record in recent])
        follower = control.events.follow()
        return StreamingResponse(_stream(follower, recent, kind, port), media_type="application/x-ndjson")

    @app.get("/v1/log", summary="The log level", tags=["watch"])
    async def log_level() -> models.LevelShape:
        return models.LevelShape(level=logging.getLevelName(logging.getLogger("switch").getEffectiveLevel()).lower())

    @app.put("/v1/log", summary="Change the log level", tags=["watch"])
    async def set_log_level(request: models.LevelShape) -> models.LevelShape:
        if request.level.lower() not in LEVELS:
            raise BadRequest(f"there is no log level {request.level!r}; levels are {', '.join(LEVELS)}")
        logging.getLogger("switch").setLevel(request.level.upper())
        return models.LevelShape(level=request.level.lower())

    @app.get("/metrics", summary="Prometheus metrics", tags=["watch"], response_class=Response)
    async def metrics(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await asyncio.to_thread(encoder, registry), media_type=content_type)


async def _stream(follower: Follower, recent: list[Record], kind: str, port: str) -> AsyncIterator[bytes]:
    with follower:
        for record in recent:
            yield json.dumps(record.as_dict()).encode() + b"\n"
        async for record in follower:
            event = record.event
            if event.kind != "gap":
                if kind and event.kind != kind and not event.kind.startswith(kind + "_"):
                    continue
                if port and port not in (event.port, event.old_port):
                    continue
            yield json.dumps(record.as_dict()).encode() + b"\n"


def _event(record: Record) -> models.EventShape:
    return models.EventShape(**record.as_dict())


def _mac(text: str) -> int:
    try:
        return parse_mac(text)
    except ValueError as error:
        raise BadRequest(f"mac: {error}") from None


# ---- errors ----


class BadRequest(SwitchError):
    """The request itself makes no sense."""


_KINDS: tuple[tuple[type[SwitchError], str, int], ...] = (
    (ConfigError, "config", 422),
    (Missing, "missing", 404),
    (Exists, "exists", 409),
    (BadRequest, "request", 400),
    (PortError, "port", 409),
    (FdbError, "fdb", 409),
    (NotBuilt, "not_built", 501),
    (SwitchError, "switch", 409),
)


def _answer(status: int, kind: str, message: str, faults: list[dict[str, Any]] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"kind": kind, "message": message, "faults": faults or []}}, status)


def _errors(app: FastAPI) -> None:
    async def known(_: Request, error: Exception) -> Response:
        kind, status = next((kind, status) for cls, kind, status in _KINDS if isinstance(error, cls))
        faults = []
        if isinstance(error, ConfigError):
            faults = [
                {"path": fault.path, "reason": fault.reason, "file": fault.file, "line": fault.line,
                 "column": fault.column}
                for fault in error.faults
            ]  # fmt: skip
        return _answer(status, kind, str(error), faults)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        lines: list[Mapping[str, Any]] = list(error.errors())
        text = "; ".join(f"{'.'.join(map(str, line['loc'][1:])) or 'body'}: {line['msg']}" for line in lines)
        if request.method != "GET" and "json" not in request.headers.get("content-type", ""):
            text += "; send the body as JSON, with the header Content-Type: application/json"
        return _answer(400, "request", text)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what may be asked"
        return _answer(error.status_code, "request", what)

    async def unforeseen(_: Request, error: Exception) -> Response:
        return _answer(500, "internal", f"{type(error).__name__}: {error}; the daemon's log has the details")

    app.add_exception_handler(SwitchError, known)
    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
