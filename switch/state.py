# SPDX-License-Identifier: Apache-2.0
"""What a restart of the daemon must not forget, kept in one JSON file.

Theory of operation. The configuration file says what should be; people and tools change the running switch beside it.
What they changed is kept as overlays on the file: per port (and per bridge) "added", "changed" or "deleted", together
with what the file said when that was recorded. At the next start an overlay applies only while the file still says the
same; where the file was edited since, the file wins and a line in the log says so. Static, external and learned flows
are kept too.

The file is replaced atomically (write, fsync, rename). A file that cannot be understood is set aside under another
name, never an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from switch.config.values import format_mac, parse_mac
from switch.datapath import FdbGroup, PortSpec, VlanPolicy
from switch.learning import Flow
from switch.plan import BridgeSpec

log = logging.getLogger("switch.state")

VERSION = 2
READABLE = (1, VERSION)  # 1: one row for each learned flow

Spec = PortSpec | BridgeSpec


@dataclass(frozen=True, slots=True)
class Overlay:
    """How the running port or bridge differs from the file. kind: added, changed, deleted."""

    kind: str
    base: Mapping[str, Any] | None  # what the file said; None: nothing
    now: Mapping[str, Any] | None  # what runs; None: nothing


@dataclass(slots=True)
class SavedState:
    """The content of a state file."""

    saved: float = 0.0
    starts: int = 0
    ports: dict[str, Overlay] = field(default_factory=dict)
    bridges: dict[str, Overlay] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)
    learned: list[FdbGroup] = field(default_factory=list)


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Every field of a spec as JSON can carry it."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))  # type: ignore[no-any-return]


def port_from_dict(data: Mapping[str, Any]) -> PortSpec:
    """The inverse of spec_to_dict; ValueError or TypeError for anything it did not write."""
    fields = dict(data)
    vlan = dict(fields.pop("vlan"))
    trunk = vlan.pop("trunk", None)
    affinity = {int(queue): int(cpu) for queue, cpu in dict(fields.pop("rx_affinity")).items()}
    spec = PortSpec(
        vlan=VlanPolicy(trunk=None if trunk is None else tuple(int(vid) for vid in trunk), **vlan),
        rx_affinity=affinity,
        **fields,
    )
    _check_types(spec, data)
    return spec


def bridge_from_dict(data: Mapping[str, Any]) -> BridgeSpec:
    spec = BridgeSpec(**data)
    _check_types(spec, data)
    return spec


def _check_types(spec: Spec, data: Mapping[str, Any]) -> None:
    """A saved field has the type of the field's default, or is null where null is allowed."""
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        allowed = {"str": (str,), "int": (int,), "bool": (bool,), "int | None": (int, type(None))}.get(str(item.type))
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            raise TypeError(f"{item.name} is {data.get(item.name)!r}")


def difference(base: Mapping[str, Spec], now: Mapping[str, Spec]) -> dict[str, Overlay]:
    """What must be laid over `base` to get `now`."""
    result = {}
    for name in sorted({*base, *now}):
        old = spec_to_dict(base[name]) if name in base else None
        new = spec_to_dict(now[name]) if name in now else None
        if old == new:
            continue
        result[name] = Overlay("added" if old is None else "deleted" if new is None else "changed", old, new)
    return result


def overlay_ports(
    base: Mapping[str, PortSpec], overlays: Mapping[str, Overlay]
) -> tuple[dict[str, PortSpec], list[str]]:
    """`base` with the saved overlays, and a sentence for each that was applied or refused."""
    result = dict(base)
    notes = []
    applied: dict[str, list[str]] = {"added": [], "changed": [], "deleted": []}
    for name, overlay in overlays.items():
        filed = spec_to_dict(base[name]) if name in base else None
        if filed != overlay.base:
            if filed != overlay.now:
                notes.append(
                    f"port {name} was {overlay.kind} at run time, but the file has changed since: the file wins"
                )
            continue
        if overlay.now is None:
            result.pop(name, None)
        else:
            try:
                result[name] = port_from_dict(overlay.now)
            except (ValueError, TypeError, KeyError) as error:
                notes.append(
                    f"port {name} was {overlay.kind} at run time, but its record is unusable ({error}): ignored"
                )
                continue
        applied[overlay.kind].append(name)
    for kind, names in applied.items():
        if names:
            noun = "port" if len(names) == 1 else "ports"
            notes.append(
                f"restored {len(names)} {noun} {kind} at run time: {_some(names)}; start with --fresh to forget"
            )
    return result, notes


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def overlay_bridges(
    base: Mapping[str, BridgeSpec], overlays: Mapping[str, Overlay]
) -> tuple[dict[str, BridgeSpec], list[str]]:
    """As overlay_ports, for bridges that were added or changed; a bridge is never deleted by an overlay."""
    result = dict(base)
    notes = []
    for name, overlay in overlays.items():
        filed = spec_to_dict(base[name]) if name in base else None
        if filed != overlay.base or overlay.now is None:
            continue
        try:
            result[name] = bridge_from_dict(overlay.now)
        except (ValueError, TypeError) as error:
            notes.append(f"bridge {name} was {overlay.kind} at run time, but its record is unusable ({error}): ignored")
            continue
        notes.append(f"restored bridge {name}, {overlay.kind} at run time; start with --fresh to forget")
    return result, notes


class StateFile:
    """One state file. Not thread-safe: one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = b""

    @classmethod
    def beside(cls, socket: Path, directory: Path | None = None) -> StateFile:
        """The file of the daemon that owns `socket`: next to it, or in `directory`."""
        return cls((directory or socket.parent) / f"{socket.name}.state.json")

    def load(self) -> SavedState:
        """The saved state, or an empty one. A file that is damaged is renamed to *.corrupt with a warning."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return SavedState()
        except OSError as error:
            log.warning("cannot read state file %s: %s; starting without it", self.path, error.strerror)
            return SavedState()
        try:
            return decode(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            aside = self.path.with_name(self.path.name + ".corrupt")
            with contextlib.suppress(OSError):
                self.path.replace(aside)
            log.warning("state file %s is damaged (%s); moved to %s, starting without it", self.path, error, aside)
            return SavedState()

    def save(self, state: SavedState, *, force: bool = False) -> bool:
        """Write when anything but the time of saving changed (or `force`). Returns whether it wrote; OSError when it
        could not."""
        body = encode(state)
        signature = hashlib.blake2b(body, digest_size=16).digest()
        if signature == self._written and not force:
            return False
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(b'{"saved":%s,' % json.dumps(state.saved or time.time()).encode())
                file.write(body + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._written = signature
        return True

    def forget(self) -> None:
        """Remove the file: `--fresh`."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def encode(state: SavedState) -> bytes:
    """The JSON body without its time and its opening brace, so that equal states encode equally."""
    body = {
        "version": VERSION,
        "starts": state.starts,
        "ports": {name: _overlay_out(overlay) for name, overlay in sorted(state.ports.items())},
        "bridges": {name: _overlay_out(overlay) for name, overlay in sorted(state.bridges.items())},
        "flows": [[flow.bridge, flow.vlan, format_mac(flow.mac), flow.port, flow.owner] for flow in state.flows],
        "learned": [
            [group.bridge, group.vlan, group.macs.hex(" ", 6), group.port, group.age] for group in state.learned
        ],
    }
    return json.dumps(body, separators=(",", ":")).encode()[1:]


def decode(body: Any) -> SavedState:
    """The inverse of encode, and of what earlier versions wrote; raises for anything else."""
    if not isinstance(body, dict) or body.get("version") not in READABLE:
        raise ValueError(f"not a state file of version {VERSION}")
    return SavedState(
        saved=float(body.get("saved", 0.0)),
        starts=int(body["starts"]),
        ports={_text(name): _overlay_in(item) for name, item in body["ports"].items()},
        bridges={_text(name): _overlay_in(item) for name, item in body["bridges"].items()},
        flows=[Flow(_text(b), int(v), parse_mac(m), _text(p), _text(o)) for b, v, m, p, o in _rows(body["flows"])],
        learned=[
            FdbGroup(_text(b), _vlan(v), _text(p), int(a), _addresses(m)) for b, v, m, p, a in _rows(body["learned"])
        ],
    )


def _overlay_out(overlay: Overlay) -> dict[str, Any]:
    return {"kind": overlay.kind, "base": overlay.base, "now": overlay.now}


def _overlay_in(item: Mapping[str, Any]) -> Overlay:
    kind, base, now = item["kind"], item["base"], item["now"]
    if kind not in ("added", "changed", "deleted"):
        raise ValueError(f"unknown overlay {kind!r}")
    for part in (base, now):
        if part is not None and not isinstance(part, dict):
            raise TypeError("an overlay's sides are objects")
    return Overlay(kind, base, now)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _vlan(value: Any) -> int:
    if not 0 <= int(value) <= 4095:
        raise ValueError(f"{value!r} is not a VLAN")
    return int(value)


def _addresses(value: Any) -> bytes:
    """Hexadecimal digits, twelve an address, with or without colons and blanks."""
    addresses = bytes.fromhex(_text(value).replace(":", ""))
    if len(addresses) % 6:
        raise ValueError(f"{len(addresses)} bytes are not whole MAC addresses")
    return addresses


def _rows(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError("flows are a list")
    return value
