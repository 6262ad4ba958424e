# SPDX-License-Identifier: Apache-2.0
"""Verbs of the MAC table: fdb show, add, del, flush, stats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from switch.cli.entry import Verbs, complete_port
from switch.cli.look import bridge_rows
from switch.cli.session import Session
from switch.cli.table import Cell, duration, table


def filters(function: Callable[..., None]) -> Callable[..., None]:
    """The options of `fdb show`, which `fdb` alone takes as well."""
    for option in (
        click.option("-n", "--limit", type=click.IntRange(0), default=0, help="At most so many (default: all)."),
        click.option("--owner", type=click.Choice(["learned", "static", "external", "held"]),
                     help="Only of this owner."),
        click.option("--mac", help="Only this address."),
        click.option("--vlan", type=click.IntRange(0, 4094), help="Only in this VLAN."),
        click.option("--port", help="Only at this port.", shell_complete=complete_port),
        click.option("--bridge", help="Only of this bridge."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group("fdb", cls=Verbs, invoke_without_command=True)
@filters
@click.pass_context
def fdb(context: click.Context, /, **wanted: Any) -> None:
    """The MAC table. Alone: fdb show."""
    verb = context.invoked_subcommand
    if verb is None:
        context.invoke(show, **wanted)
    elif given := [f"--{name}" for name, value in wanted.items() if value]:
        # `fdb --port vm1 flush` must not flush every port.
        raise click.UsageError(f"{', '.join(given)} in front of {verb!r} says nothing: write it behind", context)


@fdb.command("show")
@filters
@click.pass_obj
def show(session: Session, bridge: str | None = None, port: str | None = None, vlan: int | None = None,
         mac: str | None = None, owner: str | None = None, limit: int = 0) -> None:  # fmt: skip
    """List addresses: where they are, who put them there, how long ago they were seen."""
    data = session.ask("GET", "/v1/fdb", bridge=bridge, port=port, vlan=vlan, mac=mac, owner=owner, limit=limit or None)

    def text() -> str:
        rows = [
            (
                flow["bridge"],
                flow["vlan"],
                flow["mac"],
                flow["port"] or Cell("drop", "yellow"),
                Cell(flow["owner"], "yellow" if flow["owner"] == "held" else ""),
                duration(flow["age"]) if flow["owner"] == "learned" else "-",
            )
            for flow in data["flows"]
        ]
        hidden = data["total"] - len(rows)
        tail = f"\n... and {hidden} more" if hidden else ""
        return table(("BRIDGE", "VLAN>", "MAC", "PORT", "OWNER", "AGE>"), rows) + tail

    session.answer(data, text)


@fdb.command("add")
@click.argument("mac")
@click.argument("port", required=False, shell_complete=complete_port)
@click.option("--vlan", type=click.IntRange(0, 4094), default=0, show_default=True, help="0: untagged.")
@click.option("--bridge", help="May be left out when PORT is given or there is only one.")
@click.option("--external", is_flag=True, help="Owned by another control plane: flushed on its own.")
@click.option("--blackhole", is_flag=True, help="Drop frames to MAC instead of naming a port.")
@click.pass_obj
def add(session: Session, mac: str, port: str | None, vlan: int, bridge: str | None, external: bool,
        blackhole: bool) -> None:  # fmt: skip
    """Pin MAC to PORT: it does not age, and learning cannot move it."""
    if bool(port) == blackhole:
        raise click.UsageError("give a PORT, or --blackhole to drop frames to MAC", click.get_current_context())
    body = {
        "mac": mac,
        "port": port or "",
        "vlan": vlan,
        "bridge": bridge,
        "owner": "external" if external else "static",
    }
    data = session.ask("POST", "/v1/fdb", body)
    session.answer(data, lambda: "")


@fdb.command("del")
@click.argument("mac")
@click.option("--vlan", type=click.IntRange(0, 4094), default=0, show_default=True, help="0: untagged.")
@click.option("--bridge", help="May be left out when there is only one.")
@click.option("--missing-ok", is_flag=True, help="It is no error when there is no such entry.")
@click.pass_obj
def delete(session: Session, mac: str, vlan: int, bridge: str | None, missing_ok: bool) -> None:
    """Remove MAC, whoever put it there."""
    data = session.ask("DELETE", "/v1/fdb", mac=mac, vlan=vlan, bridge=bridge, missing_ok=missing_ok or None)
    session.answer(data, lambda: "")


@fdb.command("flush")
@click.option("--bridge", help="Only of this bridge.")
@click.option("--port", help="Only at this port.", shell_complete=complete_port)
@click.option("--vlan", type=click.IntRange(0, 4094), help="Only in this VLAN.")
@click.option("--owner", type=click.Choice(["learned", "static", "external", "held"]),
              help="Only of this owner (default: learned and held).")  # fmt: skip
@click.pass_obj
def flush(session: Session, bridge: str | None, port: str | None, vlan: int | None, owner: str | None) -> None:
    """Forget addresses. Static and external ones only when named by --owner."""
    data = session.ask("POST", "/v1/fdb/flush", {"bridge": bridge, "port": port, "vlan": vlan, "owner": owner})
    session.answer(data, lambda: f"{data['count']} removed")


@fdb.command("stats")
@click.pass_obj
def stats(session: Session) -> None:
    """Counts and limits of the MAC tables."""
    data = session.ask("GET", "/v1/fdb/stats")
    session.answer(data, lambda: bridge_rows(data["bridges"]))


COMMANDS = {fdb.name: fdb}
