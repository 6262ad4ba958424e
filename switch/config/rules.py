# SPDX-License-Identifier: Apache-2.0
"""Rules between distant parts of a configuration: things used twice, references to what is not there.

These look at the raw data, where any value may be of any type, so that they speak up even when other keys are wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from switch.config import values
from switch.config.fields import Conflict, Context, mappings, resolve_socket, trunk_vlans

Numbered = list[tuple[int, dict[Any, Any]]]


def whole_file_conflicts(raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
    bridges, ports = _sections(raw, "bridges"), _sections(raw, "ports")
    yield from _used_twice("bridges", bridges, "name", "the name")
    yield from _used_twice("ports", ports, "name", "the name")
    yield from _devices(ports)
    yield from _sockets(raw, ports, context)
    yield from _addresses(raw)
    names = list(dict.fromkeys(bridge["name"] for _, bridge in bridges if isinstance(bridge.get("name"), str)))
    if not bridges:
        names = ["br0"]
    yield from _bridge_references(ports, names)
    yield from _static_entries(bridges, ports, names)
    yield from _affinity(raw, ports, context)


def _sections(raw: Mapping[str, Any], key: str) -> Numbered:
    return mappings(raw.get(key))


def _used_twice(
    section: str,
    items: Numbered,
    key: str,
    what: str,
    normal: Callable[[Any], Any] = lambda value: value if isinstance(value, str) else None,
    also: str = "",
) -> Iterator[Conflict]:
    first: dict[Any, int] = {}
    for index, item in items:
        value = normal(item.get(key))
        if value is None:
            continue
        if value in first:
            yield (section, index, key), f"{what} {values.show(value)} is taken by {section}[{first[value]}]{also}"
        else:
            first[value] = index


def _devices(ports: Numbered) -> Iterator[Conflict]:
    return _used_twice("ports", ports, "device", "the device", also=": a device serves one port")


def _sockets(raw: Mapping[str, Any], ports: Numbered, context: Context) -> Iterator[Conflict]:
    def absolute(value: Any) -> str | None:
        try:
            return resolve_socket(value, context.directory)
        except ValueError:
            return None

    yield from _used_twice("ports", ports, "socket", "the socket", absolute, ": each port needs its own")
    control = raw.get("control", {})
    path = absolute(control.get("socket", "/run/switch/control.sock")) if isinstance(control, dict) else None
    for index, port in ports:
        if path is not None and absolute(port.get("socket")) == path:
            yield ("ports", index, "socket"), f"{values.show(path)} is the control socket: choose another path"


def _addresses(raw: Mapping[str, Any]) -> Iterator[Conflict]:
    """The API and the metrics cannot share a port, unless each has an address of its own."""
    found: list[tuple[str, int]] = []
    for path, default in ((("metrics", "listen"), "127.0.0.1:9480"), (("control", "tcp", "listen"), None)):
        value: Any = raw
        for key in path:
            value = value.get(key, default) if isinstance(value, dict) else default
        try:
            address = values.parse_listen(value)
        except ValueError:
            address = None
        if address and address[1]:
            found.append(address)
    if len(found) == 2 and found[0][1] == found[1][1]:
        hosts = {"" if host in ("0.0.0.0", "::") else host for host, _ in found}
        if len(hosts) == 1 or "" in hosts:
            yield ("control", "tcp", "listen"), f"port {found[0][1]} is that of metrics.listen: choose another"


def _bridge_references(ports: Numbered, names: list[str]) -> Iterator[Conflict]:
    for index, port in ports:
        bridge = port.get("bridge")
        if "bridge" not in port and len(names) > 1:
            yield ("ports", index, "bridge"), f"required key 'bridge' is missing: there are {', '.join(names)}"
        elif isinstance(bridge, str) and bridge not in names:
            yield ("ports", index, "bridge"), f"there is no bridge '{bridge}'{_nearest(bridge, names)}"


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f": did you mean '{near[0]}'?"
    return f": there is {', '.join(names[:10])}" if names else ""


def _static_entries(bridges: Numbered, ports: Numbered, names: list[str]) -> Iterator[Conflict]:
    """`static` of bridges and `macs` of ports: the port is there, carries the VLAN, and no address is pinned twice."""
    by_name = {port["name"]: port for _, port in reversed(ports) if isinstance(port.get("name"), str)}
    where: dict[tuple[str, int, int], str] = {}

    def pinned(key: tuple[str, int, int], place: str) -> str:
        if key in where:
            vlan = f" in VLAN {key[1]}" if key[1] else ""
            return f"{values.format_mac(key[2])}{vlan} is pinned already by {where[key]}: keep one"
        where[key] = place
        return ""

    for at, bridge in bridges:
        for index, entry in _sections(bridge, "static"):
            path = ("bridges", at, "static", index)
            name = entry.get("port")
            port = by_name.get(name) if isinstance(name, str) else None
            vlan = entry.get("vlan")
            if isinstance(name, str) and port is None:
                yield (*path, "port"), f"there is no port '{name}'{_nearest(name, list(by_name))}"
            if port is not None:
                if _bridge_of(port, names) not in (None, bridge.get("name")):
                    yield (*path, "port"), f"port '{name}' is in bridge '{_bridge_of(port, names)}', not in this one"
                if isinstance(vlan, int) and values.is_number(vlan) and not _carries(port, vlan):
                    yield (*path, "vlan"), f"port '{name}' does not carry VLAN {vlan}"
            mac = _mac(entry.get("mac"))
            if mac is not None and isinstance(bridge.get("name"), str):
                if vlan is None:
                    vlan = _untagged(port) if port is not None else 0
                key = (bridge["name"], vlan if values.is_number(vlan) else 0, mac)
                if reason := pinned(key, f"bridges[{at}].static[{index}]"):
                    yield (*path, "mac"), reason
    for at, port in ports:
        bridge_name = _bridge_of(port, names)
        macs = port.get("macs")
        for index, text in enumerate(macs if isinstance(macs, list) else []):
            mac = _mac(text)
            if mac is None or bridge_name is None:
                continue
            if reason := pinned((bridge_name, _untagged(port), mac), f"ports[{at}].macs[{index}]"):
                yield ("ports", at, "macs", index), reason


def _affinity(raw: Mapping[str, Any], ports: Numbered, context: Context) -> Iterator[Conflict]:
    switch = raw.get("switch")
    workers = switch.get("workers") if isinstance(switch, dict) else None
    if isinstance(workers, list):
        cpus = {worker["cpu"] for worker in workers if isinstance(worker, dict) and values.is_number(worker.get("cpu"))}
        if len(cpus) != len(workers):
            return  # the list itself is at fault, and says so
        remedy = ""
    elif context.machine.cpus is None:
        return
    else:
        cpus, remedy = {context.machine.default_cpu()}, " (name the workers under switch.workers)"
    for index, port in ports:
        pins = port.get("rx_affinity")
        for queue, cpu in pins.items() if isinstance(pins, dict) else ():
            if values.is_number(cpu) and cpu not in cpus:
                there = ", ".join(map(str, sorted(cpus)))
                yield (
                    ("ports", index, "rx_affinity", queue),
                    f"no worker runs on CPU {cpu}: they run on {there}{remedy}",
                )


def _bridge_of(port: Mapping[str, Any], names: list[str]) -> str | None:
    bridge = port.get("bridge", names[0] if len(names) == 1 else None)
    return bridge if isinstance(bridge, str) else None


def _untagged(port: Mapping[str, Any]) -> int:
    vlan = port.get("vlan")
    for key in ("access", "native"):
        value = vlan.get(key) if isinstance(vlan, dict) else None
        if isinstance(value, int) and values.is_number(value):
            return value
    return 0


def _carries(port: Mapping[str, Any], vlan: int) -> bool:
    """Whether a port carries a VLAN; yes when its VLANs are written wrongly, which is said elsewhere."""
    section = port.get("vlan")
    if vlan == _untagged(port) or not isinstance(section, dict):
        return True
    if values.is_number(section.get("access")):
        return False
    try:
        trunk = trunk_vlans(section.get("trunk", "all"))
    except ValueError:
        return True
    return trunk is None or vlan in trunk


def _mac(value: Any) -> int | None:
    try:
        return values.parse_station_mac(value)
    except ValueError:
        return None
