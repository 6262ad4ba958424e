# SPDX-License-Identifier: Apache-2.0
"""Verbs that look: show, ports, port, drops, stats, workers, queues, explain."""

from __future__ import annotations

import sys
from typing import Any

import click

from switch.cli.entry import Verb, complete_port
from switch.cli.session import Session, port_path
from switch.cli.table import Cell, duration, paint, pairs, percent, rate, table

# What a person can do about a drop. Keys are the closed set of the core's reasons.
REASONS = {
    "malformed_descriptor": "the guest's ring holds nonsense: chain outside its memory, a loop, a wrong direction",
    "frame_too_short": "less than an Ethernet header",
    "frame_too_long": "longer than the port may send",
    "bad_offload": "the guest asked for an offload that is impossible or was not negotiated",
    "queue_disabled": "the guest sends on a queue that it has not enabled",
    "vlan_malformed": "truncated VLAN tag",
    "vlan_not_allowed": "this port or the destination's does not carry the VLAN: swctl explain says which",
    "reserved_mac": "link-local protocol (LLDP, STP, LACP): never forwarded",
    "source_zero": "source address 00:00:00:00:00:00",
    "source_multicast": "source address is a group address",
    "hairpin": "the destination is behind the port it came from",
    "isolated": "both ports are isolated",
    "blackhole": "the destination has a drop entry: see swctl fdb",
    "no_destination": "no other enabled port carries this VLAN",
    "flood_disabled": "destination unknown, and no port may be flooded",
    "port_disabled": "this port or the destination's is disabled: swctl set-port NAME --enabled",
    "kernel_dropped": "the kernel's queue to us was full: more CPU for the worker, or less load",
    "ring_full": "the receiver is too slow: it gave no buffers",
    "buffer_too_small": "the receiver's buffers cannot hold the frame and it cannot join them",
    "link_down": "nobody is connected, or no queue is ready: see swctl port NAME",
    "mtu_exceeded": "longer than the destination's MTU",
    "offload_unsupported": "could not be segmented or checksummed for the destination",
    "kernel_busy": "the kernel refused the frame for now",
    "device_error": "the kernel or device refused the frame for good",
}


def vlan_text(vlan: dict[str, Any]) -> str:
    """access 10 / trunk 10,20 native 1 / all."""
    if vlan.get("access") is not None:
        return f"access {vlan['access']}"
    trunk = vlan.get("trunk")
    native = f" native {vlan['native']}" if vlan.get("native") else ""
    if trunk is None:
        return f"all{native}"
    shown = ",".join(map(str, trunk[:6])) + (f",... ({len(trunk)})" if len(trunk) > 6 else "")
    return f"trunk {shown or 'none'}{native}"


def state_cell(port: dict[str, Any]) -> Cell:
    if not port["enabled"]:
        return Cell("disabled", "yellow")
    return Cell("up", "green") if port["up"] else Cell(port["stage"] or "down", "red")


def port_rows(ports: list[dict[str, Any]]) -> str:
    head = ("PORT", "TYPE", "BRIDGE", "STATE", "VLAN", "RX fps>", "RX bit/s>", "TX fps>", "TX bit/s>", "DROPS/s>")
    rows = []
    for port in ports:
        rates = port["rates"]
        drops = rates["rx_drops"] + rates["tx_drops"]
        rows.append(
            (
                port["name"],
                port["type"],
                port["bridge"],
                state_cell(port),
                vlan_text(port["vlan"]),
                rate(rates["rx_frames"]),
                rate(rates["rx_bits"]),
                rate(rates["tx_frames"]),
                rate(rates["tx_bits"]),
                Cell(rate(drops), "yellow" if drops else ""),
            )
        )
    return table(head, rows)


# `show` is one screen, however many ports there are: more than so many are summed up, and these are named.
FEW_PORTS = 16
FEW_NAMES = 8


def port_groups(ports: list[dict[str, Any]]) -> str:
    """A line for each type in each bridge."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for port in ports:
        groups.setdefault((port["bridge"], port["type"]), []).append(port)
    head = ("BRIDGE", "TYPE", "PORTS>", "UP>", "RX fps>", "RX bit/s>", "TX fps>", "TX bit/s>", "DROPS/s>")
    rows = []
    for (bridge, kind), group in sorted(groups.items()):
        sums = {key: sum(port["rates"][key] for port in group) for key in group[0]["rates"]}
        drops, up = sums["rx_drops"] + sums["tx_drops"], sum(map(_works, group))
        rows.append(
            (
                bridge,
                kind,
                len(group),
                Cell(up, "green" if up == len(group) else "red"),
                rate(sums["rx_frames"]),
                rate(sums["rx_bits"]),
                rate(sums["tx_frames"]),
                rate(sums["tx_bits"]),
                Cell(rate(drops), "yellow" if drops else ""),
            )
        )
    return table(head, rows)


def worth_a_look(ports: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """What is not up, then what loses frames, then what is busiest; ports at rest last."""

    def key(port: dict[str, Any]) -> tuple[bool, float, float]:
        rates = port["rates"]
        return (_works(port), -rates["rx_drops"] - rates["tx_drops"], -rates["rx_frames"] - rates["tx_frames"])

    return sorted(ports, key=key)[:most]


def _works(port: dict[str, Any]) -> bool:
    return bool(port["up"] and port["enabled"])


def _down_in_groups(ports: list[dict[str, Any]]) -> list[str]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for port in ports:
        if not _works(port):
            groups.setdefault("disabled" if not port["enabled"] else port["stage"] or "down", []).append(port)
    lines = []
    for stage, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(port["name"] for port in group[:FEW_NAMES]) + (", ..." if len(group) > FEW_NAMES else "")
        first = why_down(group[:1])
        lines.append(f"{len(group)} {stage}: {names}" + (f"; {first[0]}" if first else ""))
    return lines


def unusual(ports: list[dict[str, Any]]) -> list[str]:
    """What is to be known of ports that work: a guest that is about to move away, say."""
    return [f"{port['name']}: {port['detail']}" for port in ports if _works(port) and port["detail"]][:FEW_PORTS]


def below_ports(ports: list[dict[str, Any]]) -> str:
    lines = [paint("! ", "red") + line for line in why_down(ports)]
    return "\n".join(lines + [paint("! ", "yellow") + line for line in unusual(ports)])


def why_down(ports: list[dict[str, Any]]) -> list[str]:
    """A line for each port that does not work, or one for each stage when they are many."""
    if sum(not _works(port) for port in ports) > FEW_NAMES:
        return _down_in_groups(ports)
    off = [
        f"{port['name']}: is disabled, no frame passes: swctl set-port {port['name']} --enabled"
        for port in ports
        if not port["enabled"]
    ]
    return off + [
        f"{port['name']}: {port['detail']}" for port in ports if port["enabled"] and not port["up"] and port["detail"]
    ]


def worker_rows(workers: list[dict[str, Any]]) -> str:
    head = ("WORKER", "CPU>", "LOAD>", "FRAMES>", "BATCH>", "WAKEUPS>", "SLEPT>", "QUEUES")
    return table(
        head,
        (
            (
                worker["worker"],
                worker["cpu"] if worker["cpu"] >= 0 else "any",
                Cell(percent(worker["load"]), "red" if worker["load"] > 0.95 else "")
                if not worker["stuck_seconds"]
                else Cell("stuck", "red"),
                rate(worker["frames"]),
                f"{worker['mean_batch']:.1f}",
                rate(worker["wakeups"]),
                duration(worker["sleep_seconds"]),
                " ".join(worker["rx_queues"][:12]) + (" ..." if len(worker["rx_queues"]) > 12 else "") or "none",
            )
            for worker in workers
        ),
    )


def bridge_rows(bridges: list[dict[str, Any]]) -> str:
    head = ("BRIDGE", "PORTS>", "LEARNED>", "STATIC>", "EXTERNAL>", "HELD>", "LIMIT>", "MOVES>", "REFUSED>", "AGEING")
    rows = []
    for bridge in bridges:
        owners, events = bridge["entries"], bridge["events"]
        refused = sum(count for name, count in events.items() if name.startswith("refused"))
        rows.append(
            (
                bridge["name"],
                bridge["ports"],
                owners.get("learned", 0),
                owners.get("static", 0),
                owners.get("external", 0),
                Cell(owners.get("held", 0), "yellow" if owners.get("held") else ""),
                bridge["mac_limit"],
                rate(events.get("moved", 0)),
                Cell(rate(refused), "yellow" if refused else ""),
                f"{bridge['ageing']}s" if bridge["ageing"] else "never",
            )
        )
    return table(head, rows)


def config_notes(config: dict[str, Any]) -> list[str]:
    notes = []
    if not config["last_apply_success"]:
        notes.append("the last configuration was refused: what ran before goes on (swctl validate FILE)")
    for change in config["pending_restart"]:
        notes.append(f"restart switchd for {change['key']}: {change['running']} -> {change['wanted']}")
    if config["confirm_until"]:
        notes.append("an applied configuration waits for `swctl confirm` and is undone otherwise")
    return notes


@click.command(cls=Verb)
@click.pass_obj
def show(session: Session) -> None:
    """Everything on one screen: ports and why they are down, workers, MAC tables, warnings."""
    data = session.ask("GET", "/v1/show")

    def text() -> str:
        notes_of_ports = below_ports(data["ports"])
        up = sum(map(_works, data["ports"]))
        config = data["config"]
        parts = [
            f"{paint(data['name'], 'bold')}  switchd {data['version']}, pid {data['pid']}, up "
            f"{duration(data['uptime_seconds'])}, {data['polling']} polling, {up} of {len(data['ports'])} ports up\n"
            f"config {config['file']} ({config['hash'][:12]})"
        ]
        notes = [*config_notes(config), *data["warnings"]]
        if notes:
            parts.append("\n".join(paint("! ", "yellow") + note for note in notes))
        if len(data["ports"]) <= FEW_PORTS:
            parts.append(port_rows(data["ports"]))
        else:
            parts.append(port_groups(data["ports"]))
            chosen = worth_a_look(data["ports"], FEW_NAMES)
            title = f"{len(chosen)} of {len(data['ports'])}: not up, losing frames, busiest (swctl ports has all)"
            parts.append(paint(title, "bold") + "\n" + port_rows(chosen))
        if notes_of_ports:
            parts.append(notes_of_ports)
        parts.append(worker_rows(data["workers"][:FEW_PORTS]) + _and_more(data["workers"], "swctl workers"))
        parts.append(bridge_rows(data["bridges"][:FEW_PORTS]) + _and_more(data["bridges"], "swctl fdb stats"))
        return "\n\n".join(parts)

    session.answer(data, text)


def _and_more(rows: list[Any], verb: str) -> str:
    return f"\n... and {len(rows) - FEW_PORTS} more: {verb}" if len(rows) > FEW_PORTS else ""


@click.command(cls=Verb)
@click.option("-q", "--quiet", is_flag=True, help="Names only, one a line.")
@click.pass_obj
def ports(session: Session, quiet: bool) -> None:
    """List the ports, with rates over the last seconds."""
    data = session.ask("GET", "/v1/ports")
    names = [port["name"] for port in data["ports"]]
    if quiet:
        session.answer(names, lambda: "\n".join(names))
        return
    below = below_ports(data["ports"])
    session.answer(data, lambda: port_rows(data["ports"]) + (f"\n\n{below}" if below else ""))


@click.command(cls=Verb)
@click.argument("name", shell_complete=complete_port)
@click.pass_obj
def port(session: Session, name: str) -> None:
    """Everything about one port; on top how far its set-up is and what to do."""
    data = session.ask("GET", port_path(name))
    session.answer(data, lambda: port_text(data))


def port_text(data: dict[str, Any]) -> str:
    facts = dict(data["facts"])
    remedy = facts.pop("remedy", "")
    parts = [
        f"{paint(data['name'], 'bold')}  {data['type']} in bridge {data['bridge']}, {state_cell(data)}"
        f", {vlan_text(data['vlan'])}"
    ]
    reason = [("stage", data["stage"]), ("note" if data["up"] else "why", data["detail"]), ("remedy", remedy)]
    parts.append(pairs(reason))
    spec = [
        (key, value) for key, value in data["spec"].items() if key not in ("name", "type", "bridge", "vlan", "macs")
    ]
    parts.append(
        paint("settings", "bold") + f" ({'from the file' if data['origin'] == 'file' else 'added at run time'})\n"
        + pairs([(key, _plain(value)) for key, value in spec])
    )  # fmt: skip
    if facts:
        parts.append(paint("facts", "bold") + "\n" + pairs(sorted(facts.items())))
    if data["rings"]:
        names = list(dict.fromkeys(key for ring in data["rings"] for key in ring["facts"]))
        rows = [[ring["name"], *[ring["facts"].get(key, "") for key in names]] for ring in data["rings"]]
        parts.append(paint("rings", "bold") + "\n" + table(["RING", *names], rows))
    rows = [
        [f"{queue['direction']}{queue['queue']}", queue["cpu"] if queue["cpu"] >= 0 else "-", queue["frames"],
         queue["bytes"], queue["notifications"]]
        for queue in data["queues"]
    ]  # fmt: skip
    parts.append(paint("queues", "bold") + "\n" + table(("QUEUE", "CPU>", "FRAMES>", "BYTES>", "NOTIFICATIONS>"), rows))
    counters = [
        ("replicated", data["replicated"]), ("forwarded", data["forwarded"]), ("offered", data["offered"]),
        ("segmented", data["segmented"]), *sorted(data["counters"].items()),
    ]  # fmt: skip
    parts.append(paint("counters", "bold") + "\n" + pairs(counters))
    lost = [(way, reason, count) for way, drops in data["drops"].items() for reason, count in drops.items()]
    if lost:
        rows = [[way, reason, count, REASONS.get(reason, "")] for way, reason, count in lost]
        parts.append(paint("drops", "bold") + "\n" + table(("DIR", "REASON", "FRAMES>", "MEANING"), rows))
    return "\n\n".join(part for part in parts if part)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)


@click.command(cls=Verb)
@click.argument("name", required=False, metavar="[PORT]", shell_complete=complete_port)
@click.option("-a", "--all", "everything", is_flag=True, help="Reasons that never happened too.")
@click.pass_obj
def drops(session: Session, name: str | None, everything: bool) -> None:
    """Where frames are lost, and why; on top what is lost now. Direction rx: on the way in; tx: on the way out."""
    data = session.ask("GET", "/v1/drops", port=name, all=everything or None)
    rows = [
        (row["port"], row["direction"], row["reason"], row["frames"],
         Cell(rate(row["rate"]), "yellow" if row["rate"] else ""), REASONS.get(row["reason"], ""))
        for row in data["drops"]
    ]  # fmt: skip
    head = ("PORT", "DIR", "REASON", "FRAMES>", "NOW/s>", "MEANING")
    session.answer(data, lambda: table(head, rows) if rows else "no frame was lost")


@click.command(cls=Verb)
@click.pass_obj
def stats(session: Session) -> None:
    """Totals of every port. received + replicated = forwarded + dropped; offered + segmented = sent + dropped."""
    data = session.ask("GET", "/v1/stats")
    head = ("PORT", "RX frames>", "RX bytes>", "RX drops>", "replicated>", "forwarded>",
            "TX frames>", "TX bytes>", "TX drops>", "offered>", "segmented>")  # fmt: skip
    rows = [
        (row["port"], row["rx_frames"], row["rx_bytes"], sum(row["rx_drops"].values()), row["replicated"],
         row["forwarded"], row["tx_frames"], row["tx_bytes"], sum(row["tx_drops"].values()), row["offered"],
         row["segmented"])
        for row in data["ports"]
    ]  # fmt: skip
    session.answer(data, lambda: table(head, rows))


@click.command(cls=Verb)
@click.pass_obj
def workers(session: Session) -> None:
    """The polling threads: CPU, load, batches, sleep."""
    data = session.ask("GET", "/v1/workers")
    session.answer(data, lambda: worker_rows(data["workers"]))


@click.command(cls=Verb)
@click.pass_obj
def queues(session: Session) -> None:
    """Which worker polls which queue, and which queue is busy."""
    data = session.ask("GET", "/v1/queues")
    head = ("PORT", "DIR", "QUEUE>", "WORKER>", "CPU>", "fps>", "FRAMES>", "BYTES>", "NOTIFICATIONS>")
    rows = [
        (row["port"], row["direction"], row["queue"], row["worker"] if row["worker"] >= 0 else "-",
         row["cpu"] if row["cpu"] >= 0 else "-", rate(row["rate"]), row["frames"], row["bytes"], row["notifications"])
        for row in data["queues"]
    ]  # fmt: skip
    session.answer(data, lambda: table(head, rows))


@click.command(cls=Verb)
@click.argument("name", metavar="PORT", shell_complete=complete_port)
@click.argument("frame", nargs=-1, metavar="[HEX...]")
@click.option("--to", "destination", metavar="MAC", help="Instead of HEX: a frame to this address.")
@click.option("--from", "source", metavar="MAC", help="With --to: from it (default: an address that is at PORT).")
@click.option("--vlan", type=click.IntRange(1, 4094), help="With --to: tagged so (default: untagged).")
@click.option("--length", type=click.IntRange(60, 65_535), default=60, show_default=True, help="With --to: its bytes.")
@click.pass_obj
def explain(session: Session, name: str, frame: tuple[str, ...], destination: str | None, source: str | None,
            vlan: int | None, length: int) -> None:  # fmt: skip
    """What would happen to a frame that enters at PORT: every decision, none of them carried out.

    HEX is the frame's bytes, spaces and colons as you like; `-` reads it from standard input. Behind the verdict
    stands which ports would lose it, and which do not get it, and why.

    \b
    swctl explain vm1 --to 52:54:00:00:00:02
    swctl explain vm1 --to ff:ff:ff:ff:ff:ff --vlan 10
    """
    if bool(frame) == bool(destination):
        raise click.UsageError("give the frame in HEX, or --to MAC", click.get_current_context())
    if not destination:
        text = sys.stdin.read() if frame == ("-",) else " ".join(frame)
    else:
        if source is None:
            known = session.ask("GET", "/v1/fdb", port=name, limit=1)["flows"]
            source = known[0]["mac"] if known else "02:00:00:00:00:01"
        tag = f"8100{vlan:04x}" if vlan else ""
        text = f"{_mac_digits(destination)}{_mac_digits(source)}{tag}0800".ljust(2 * length, "0")
    data = session.ask("POST", port_path(name, "/explain"), {"frame": text})
    session.answer(data, lambda: "\n".join(data["steps"]))


def _mac_digits(text: str) -> str:
    digits = "".join(character for character in text if character not in ":-.")
    if len(digits) != 12 or not set(digits.lower()) <= set("0123456789abcdef"):
        raise click.UsageError(f"{text!r} is not a MAC address, such as 52:54:00:12:34:56", click.get_current_context())
    return digits


COMMANDS = {command.name: command for command in (show, ports, port, drops, stats, workers, queues, explain)}
