# SPDX-License-Identifier: Apache-2.0
"""Verbs that watch: top, events, history, log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import click

from switch.cli.entry import Verb, complete_port
from switch.cli.look import state_cell
from switch.cli.session import Session
from switch.cli.table import Cell, duration, paint, percent, rate, table


@click.command(cls=Verb)
@click.option("-n", "--count", type=click.IntRange(1), help="Stop after so many tables (default: never).")
@click.option("-i", "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@click.pass_obj
def top(session: Session, count: int | None, interval: float) -> None:
    """Rates of every port and the load of every worker, again and again. With -o json one object a line."""
    before, then = session.ask("GET", "/v1/show"), time.monotonic()
    shown = 0
    while count is None or shown < count:
        time.sleep(interval)
        now, at = session.ask("GET", "/v1/show"), time.monotonic()
        data = {"time": time.time(), **_rates(before, now, at - then)}
        if session.json:
            click.echo(json.dumps(data))
        else:
            clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ("\n" if shown else "")
            click.echo(clear + _screen(now, data))
        sys.stdout.flush()
        before, then = now, at
        shown += 1


_COUNTERS = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "rx_drops", "tx_drops")


def _rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, Any]:
    old_ports = {port["name"]: port for port in before["ports"]}
    old_workers = {worker["worker"]: worker for worker in before["workers"]}
    ports, workers = [], []
    for port in now["ports"]:
        old = old_ports.get(port["name"], port)
        ports.append(
            {"port": port["name"], "up": port["up"]}
            | {key: max(0, port[key] - old[key]) / seconds for key in _COUNTERS}
        )
    for worker in now["workers"]:
        old = old_workers.get(worker["worker"], worker)
        busy, idle = (worker[key] - old[key] for key in ("busy_seconds", "idle_seconds"))
        batches = worker["batches"] - old["batches"]
        workers.append(
            {
                "worker": worker["worker"],
                "cpu": worker["cpu"],
                "load": busy / (busy + idle) if busy + idle > 0 else 0.0,
                "frames": max(0, worker["frames"] - old["frames"]) / seconds,
                "mean_batch": (worker["frames"] - old["frames"]) / batches if batches else 0.0,
            }
        )
    return {"ports": ports, "workers": workers}


def _screen(now: dict[str, Any], data: dict[str, Any]) -> str:
    states = {port["name"]: state_cell(port) for port in now["ports"]}
    rows: list[tuple[object, ...]] = []
    for row in sorted(data["ports"], key=lambda row: -(row["rx_frames"] + row["tx_frames"])):
        rows.append((row["port"], states[row["port"]], *_columns(row)))
    total = {key: sum(row[key] for row in data["ports"]) for key in _COUNTERS}
    rows.append((Cell("total", "bold"), "", *_columns(total)))
    head = ("PORT", "STATE", "RX fps>", "RX bit/s>", "TX fps>", "TX bit/s>", "DROPS/s>")
    loads = "  ".join(
        f"worker {row['worker']} on CPU {row['cpu']}: {percent(row['load'])} busy, "
        f"{rate(row['frames'])} fps, batch {row['mean_batch']:.1f}"
        for row in data["workers"]
    )
    title = f"{paint(now['name'], 'bold')}  up {duration(now['uptime_seconds'])}  {time.strftime('%H:%M:%S')}"
    return f"{title}\n{loads}\n\n{table(head, rows)}"


def _columns(row: dict[str, float]) -> tuple[object, ...]:
    drops = row["rx_drops"] + row["tx_drops"]
    return (
        rate(row["rx_frames"]),
        rate(row["rx_bytes"] * 8),
        rate(row["tx_frames"]),
        rate(row["tx_bytes"] * 8),
        Cell(rate(drops), "yellow" if drops else ""),
    )


@click.command(cls=Verb)
@click.option("-f", "--follow", is_flag=True, help="Go on as events come, until Ctrl-C.")
@click.option("-n", "--limit", type=click.IntRange(0, 20_000), default=100, show_default=True, help="Of the past.")
@click.option("--kind", help="Only this kind, or kinds that start so: fdb, port, fdb_moved.")
@click.option("--port", help="Only of this port.", shell_complete=complete_port)
@click.pass_obj
def events(session: Session, follow: bool, limit: int, kind: str | None, port: str | None) -> None:
    """What happened: ports, MAC moves, refusals, changes of configuration."""
    if follow:
        for event in session.stream("/v1/events", follow=True, limit=limit, kind=kind, port=port):
            click.echo(json.dumps(event) if session.json else event_line(event))
            sys.stdout.flush()
        raise click.ClickException("switchd stopped")
    data = session.ask("GET", "/v1/events", limit=limit, kind=kind, port=port)
    otherwise = "nothing of that happened lately" if kind or port else "nothing happened yet"
    session.answer(data, lambda: _lines(data["events"], otherwise))


@click.command(cls=Verb)
@click.argument("mac", required=False)
@click.option("--bridge", help="Only of this bridge.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The newest so many."
)
@click.pass_obj
def history(session: Session, mac: str | None, bridge: str | None, limit: int) -> None:
    """Where was MAC: what the tables learned, moved and forgot."""
    data = session.ask("GET", "/v1/history", mac=mac, bridge=bridge, limit=limit)
    session.answer(data, lambda: _lines(data["events"], f"nothing is known of {mac or 'any address'}"))


def _lines(found: Iterable[dict[str, Any]], otherwise: str) -> str:
    return "\n".join(map(event_line, found)) or otherwise


def event_line(event: dict[str, Any]) -> str:
    """One event, one line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"])) if event["time"] else " " * 19
    words = [event["kind"]]
    if "mac" in event:
        words.append(f"{event['mac']} vlan {event['vlan']} bridge {event.get('bridge', '')}")
    if event.get("old_port"):
        words.append(f"{event['old_port']} -> {event.get('port') or 'none'}")
    elif event.get("port"):
        words.append(event["port"])
    line = f"{when}  {'  '.join(words)}"
    return f"{line}: {event['detail']}" if event.get("detail") else line


@click.command(cls=Verb)
@click.argument("level", required=False, type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_obj
def log(session: Session, level: str | None) -> None:
    """Show or change how much the daemon logs."""
    data = session.ask("PUT", "/v1/log", {"level": level}) if level else session.ask("GET", "/v1/log")
    session.answer(data, lambda: "" if level else data["level"])


COMMANDS = {command.name: command for command in (top, events, history, log)}
