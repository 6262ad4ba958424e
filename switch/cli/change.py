# SPDX-License-Identifier: Apache-2.0
"""Verbs that change ports: add-port, set-port, del-port. Options are the keys of a port in the configuration file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from switch.cli.entry import Verb, complete_port
from switch.cli.session import Session, port_path

TYPES = ("vhostuser", "virtiouser", "tap", "afpacket", "verbs", "vdpa", "vduse", "afxdp")

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _switch(name: str, help_text: str) -> Decorator:
    return click.option(f"--{name}/--no-{name}", default=None, help=help_text)


PORT_OPTIONS: tuple[Decorator, ...] = (
    click.option("--socket", metavar="PATH", help="vhost-user socket (vhostuser, virtiouser)."),
    click.option("--socket-owner", type=click.Choice(["switch", "peer"]), help="Who creates the socket and listens."),
    click.option("--socket-mode", metavar="MODE", help="Permission bits of a socket that we create: 0660."),
    click.option("--socket-group", metavar="GROUP", help="Group of a socket that we create."),
    click.option("--device", metavar="DEV", help="Interface, RDMA device (verbs), file (vdpa) or name (vduse)."),
    click.option("--queues", type=int, metavar="N", help="Queue pairs at most."),
    click.option("--bridge", metavar="NAME", help="May be left out when there is only one."),
    click.option("--vlan-access", type=int, metavar="VID", help="Untagged member of this VLAN."),
    click.option("--vlan-trunk", metavar="LIST", help="VLANs with a tag: 10,20-29 or all."),
    click.option("--vlan-native", type=int, metavar="VID", help="VLAN of untagged frames on a trunk; 0: none."),
    click.option("--mtu", type=int, metavar="BYTES", help="0: no limit."),
    click.option("--mac", metavar="MAC", help="Address of the interface (tap, vduse)."),
    click.option("--mac-limit", type=int, metavar="N", help="Addresses learned here at most; 0: as the bridge."),
    click.option("--pin-mac", "macs", multiple=True, metavar="MAC", help="A static address of this port; repeatable."),
    click.option("--rx-affinity", metavar="Q:CPU,...", help="Which worker's CPU polls which receive queue."),
    click.option("--ring-size", type=int, metavar="N", help="Entries per ring (virtiouser, vdpa, vduse)."),
    click.option("--steering", metavar="WHAT", help="What a NIC hands over: all, leftovers or MAC,... (verbs)."),
    click.option("--fanout", type=click.Choice(["hash", "qm"]), help="How several queues share frames (afpacket)."),
    click.option(
        "--checksum", type=click.Choice(["auto", "fix", "trust"]), help="Unfinished checksums that arrive (afxdp)."
    ),
    _switch("enabled", "Whether frames may pass."),
    _switch("learning", "Learn source addresses."),
    _switch("flood", "Receive frames to unknown addresses."),
    _switch("isolated", "Exchange nothing with other isolated ports."),
    _switch("vhost", "Frames through the kernel's vhost-net (tap)."),
    _switch("packed", "Offer packed rings."),
    _switch("offloads", "Offer checksum and segmentation offloads."),
    _switch("mergeable", "Offer mergeable receive buffers."),
    _switch("in-order", "Offer in-order use of buffers."),
)


def port_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(PORT_OPTIONS):
        function = option(function)
    return function


def request_of(session: Session, options: dict[str, Any], vlan: dict[str, Any] | None = None) -> dict[str, Any]:
    """Options as the keys of a port; those not given are left out. `vlan`: what the port has now."""
    request = {key: value for key, value in options.items() if value is not None and not key.startswith("vlan_")}
    if not request.get("macs"):
        request.pop("macs", None)
    if "macs" in request:
        request["macs"] = list(request["macs"])
    # An empty one is the daemon's to refuse, not this directory; and this directory is not on another machine.
    if request.get("socket") and not session.remote:
        request["socket"] = str(Path(request["socket"]).absolute())
    if "rx_affinity" in request:
        request["rx_affinity"] = _affinity(request["rx_affinity"])
    if (found := _vlan(options, vlan or {})) is not None:
        request["vlan"] = found
    return request


def _vlan(options: dict[str, Any], now: dict[str, Any]) -> dict[str, Any] | None:
    access, trunk, native = (options.get(f"vlan_{key}") for key in ("access", "trunk", "native"))
    if access is not None:
        # With trunk or native besides it, the daemon says why they exclude each other.
        also = {"trunk": trunk and _vlan_list(trunk), "native": native}
        return {"access": access, **{key: value for key, value in also.items() if value is not None}}
    if trunk is None and native is None:
        return None
    result: dict[str, Any] = {}
    if trunk is not None:
        result["trunk"] = _vlan_list(trunk)
    elif now.get("trunk") is not None:
        result["trunk"] = now["trunk"]
    wanted = now.get("native") if native is None else native
    return result | ({"native": wanted} if wanted else {})


def _vlan_list(text: str) -> list[int | str] | str:
    if text == "all":
        return text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isdecimal() else part for part in parts]


def _affinity(text: str) -> dict[str, int]:
    result = {}
    for part in text.replace(" ", ",").split(","):
        queue, _, cpu = part.partition(":")
        if not queue.isdecimal() or not cpu.isdecimal():
            raise click.BadParameter(f"{part!r} is not QUEUE:CPU, such as 0:2", param_hint="--rx-affinity")
        result[queue] = int(cpu)
    return result


def _complete_type(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(kind) for kind in TYPES if kind.startswith(incomplete)]


@click.command("add-port", cls=Verb)
@click.argument("kind", metavar="TYPE", shell_complete=_complete_type)
@click.argument("name")
@port_options
@click.option("--exist-ok", is_flag=True, help="It is no error when just this port exists already.")
@click.pass_obj
def add_port(session: Session, /, kind: str, name: str, exist_ok: bool, **options: Any) -> None:
    """Add a port. TYPE is vhostuser, virtiouser, tap, afpacket, verbs, vdpa, vduse or afxdp. It survives restarts.

    \b
    swctl add-port vhostuser vm1 --socket /run/switch/vm1.sock --queues 2
    swctl add-port afpacket uplink --device eth1 --vlan-trunk 10,20-29 --vlan-native 10
    swctl add-port afxdp fast --device eth2 --queues 4
    """
    request = {"name": name, "type": kind, **request_of(session, options)}
    data = session.ask("POST", "/v1/ports", request, exist_ok=exist_ok or None)
    session.answer(data, lambda: "" if data["changed"] else f"port {name} exists already")


@click.command("set-port", cls=Verb)
@click.argument("name", shell_complete=complete_port)
@port_options
@click.option("--default", "defaults", multiple=True, metavar="KEY", help="Put a key back to its default; repeatable.")
@click.pass_obj
def set_port(session: Session, /, name: str, defaults: tuple[str, ...], **options: Any) -> None:
    """Change a port. What is not named stays. Only identity (socket, device, queues, ...) disturbs its frames."""
    vlan = None
    if options.get("vlan_trunk") is not None or options.get("vlan_native") is not None:
        vlan = session.ask("GET", port_path(name))["vlan"]
    request = request_of(session, options, vlan) | {key.replace("-", "_"): None for key in defaults}
    if not request:
        raise click.UsageError("nothing to change: give at least one option", click.get_current_context())
    data = session.ask("PATCH", port_path(name), request)
    session.answer(data, lambda: "\n".join(step["text"] for step in data["steps"]) or "nothing to change")


@click.command("del-port", cls=Verb)
@click.argument("name", shell_complete=complete_port)
@click.option("--missing-ok", is_flag=True, help="It is no error when there is no such port.")
@click.pass_obj
def del_port(session: Session, name: str, missing_ok: bool) -> None:
    """Delete a port, its socket and the MAC addresses behind it."""
    data = session.ask("DELETE", port_path(name), missing_ok=missing_ok or None)
    session.answer(data, lambda: "" if data["changed"] else f"there is no port {name}")


COMMANDS = {command.name: command for command in (add_port, set_port, del_port)}
