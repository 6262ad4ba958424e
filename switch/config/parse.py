# SPDX-License-Identifier: Apache-2.0
"""File or request -> models, or a ConfigError with every fault and its place."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from switch.config import values
from switch.config.fields import Context
from switch.config.loader import Document, Path_, decode, path_text, read_file, read_yaml
from switch.config.machine import Machine
from switch.config.models import Config
from switch.config.ports import KIND_HABITS, PORT_KINDS, PortModel, PortSection
from switch.datapath import PortSpec
from switch.errors import ConfigError, Fault

_PORT: TypeAdapter[Any] = TypeAdapter(PortModel)


def load_config(path: str | os.PathLike[str], machine: Machine | None = None) -> Config:
    """Read and check a file. Relative paths in it start at its directory."""
    file = Path(path)
    return parse_config(read_file(file), str(path), directory=file.absolute().parent, machine=machine)


def parse_config(
    text: str | bytes, name: str = "<text>", directory: Path | None = None, machine: Machine | None = None
) -> Config:
    """Check the text of a file. Without `directory` relative paths are refused. `name` stands in messages."""
    document = read_yaml(decode(text, name) if isinstance(text, bytes) else text, name)
    faults = list(document.faults)
    context = Context(machine or Machine.here(), directory)
    try:
        config = Config.model_validate(document.data, context=context)
    except ValidationError as error:
        faults += _located(error, document, name, context)
    else:
        if not faults:
            return config
    raise ConfigError(sorted(dict.fromkeys(faults), key=lambda fault: (fault.line, fault.column)))


def port_from_request(
    request: Mapping[str, Any], base: PortSection | None = None, machine: Machine | None = None
) -> PortSection:
    """A port as the API asks for it: the keys of `ports[]` in the file, the same checks, paths named after the keys.

    With `base`, `request` holds only what changes; null puts a key back to its default.
    """
    data = dict(request)
    if base is not None:
        before = base.model_dump(mode="json", exclude_defaults=True) | {"type": base.model_dump()["type"]}
        data = {**before, **data}
        # Null is "the default" of a key that exists; one that does not is left in, to be refused.
        kind = data["type"]
        known = PORT_KINDS[kind].model_fields if isinstance(kind, str) and kind in PORT_KINDS else {}
        data = {key: value for key, value in data.items() if value is not None or key not in known}
    context = Context(machine or Machine.here(), None)
    try:
        port = _PORT.validate_python(data, context=context)
    except ValidationError as error:
        found = _sentences(error, lambda loc: loc[1:], context)
        raise ConfigError([Fault(path_text(path), reason) for path, reason, _ in found]) from None
    return port if isinstance(port, PortSection) else _not_a_port(port)


def port_from_spec(spec: PortSpec) -> PortSection:
    """The port of a file that would give `spec`: for writing what runs into a file. The group is its number."""
    kind = PORT_KINDS[spec.type]
    request: dict[str, Any] = {
        key: getattr(spec, key)
        for key in kind.model_fields
        if key not in ("vlan", "macs", "mac", "device", "socket_mode", "socket_group", "rx_affinity")
    }
    vlan = spec.vlan
    if vlan.access is not None:
        request["vlan"] = {"access": vlan.access}
    else:
        request["vlan"] = {"trunk": "all" if vlan.trunk is None else list(vlan.trunk)}
        if vlan.native:
            request["vlan"]["native"] = vlan.native
    request["rx_affinity"] = dict(spec.rx_affinity)
    if spec.device:
        request["device"] = spec.device
    if spec.mac:
        request["mac"] = values.format_mac(spec.mac)
    if spec.socket_mode is not None and spec.socket_owner == "switch":
        request["socket_mode"] = values.format_mode(spec.socket_mode)
    if spec.socket_gid is not None and spec.socket_owner == "switch":
        request["socket_group"] = spec.socket_gid
    return port_from_request({key: value for key, value in request.items() if key in kind.model_fields})


def _not_a_port(value: object) -> PortSection:
    raise TypeError(f"{type(value).__name__} is not a port")


# ---- pydantic's findings -> sentences with places ----


def _located(error: ValidationError, document: Document, name: str, context: Context) -> list[Fault]:
    def without_kind(loc: Path_) -> Path_:
        # pydantic names the chosen port kind between the position and the key: ("ports", 1, "tap", "device").
        return (*loc[:2], *loc[3:]) if len(loc) > 2 and loc[0] == "ports" else loc

    faults = []
    for path, reason, of_key in _sentences(error, without_kind, context):
        if any(path[:length] in document.poisoned for length in range(len(path) + 1)):
            continue
        line, column = document.place(path, of_key)
        faults.append(Fault(path_text(path), reason, name, line, column))
    return faults


def _sentences(
    error: ValidationError, strip: Callable[[Path_], Path_], context: Context
) -> Iterator[tuple[Path_, str, bool]]:
    """(path, reason, whether the place is that of the key) of each finding."""
    for line in error.errors(include_url=False):
        kind, given = line["type"], line["input"]
        path = strip(line["loc"])
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            yield (*path, "type"), _bad_port_type(given), False
            yield from _common_faults(given, path, context)
        else:
            yield path, _reason(kind, line["msg"], given, line.get("ctx", {})), kind == "key"


def _bad_port_type(given: Any) -> str:
    built = ", ".join(PORT_KINDS)
    if not isinstance(given, Mapping) or "type" not in given:
        return f"required key 'type' is missing: one of {built}"
    kind = given["type"]
    near = difflib.get_close_matches(str(kind).lower().replace("-", "").replace("_", ""), PORT_KINDS, n=1, cutoff=0.6)
    if str(kind) in KIND_HABITS:
        return f"there is no type '{kind}': write {KIND_HABITS[str(kind)]}"
    if near:
        return f"there is no type {values.show(kind)}: did you mean '{near[0]}'?"
    return f"there is no type {values.show(kind)}: this build has {built}"


def _common_faults(given: Any, path: Path_, context: Context) -> Iterator[tuple[Path_, str, bool]]:
    """The findings in the keys that every port has, when its type is wrong and pydantic looked no further."""
    if not isinstance(given, Mapping):
        return
    common = {key: value for key, value in given.items() if key in PortSection.model_fields}
    try:
        PortSection.model_validate(common, context=context)
    except ValidationError as error:
        yield from _sentences(error, lambda loc: (*path, *loc), context)


_SHAPES = {
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
    "dict_type": "must be a mapping (key: value)",
    "tuple_type": "must be a list ([a, b] or lines with - in front)",
    "list_type": "must be a list ([a, b] or lines with - in front)",
}


_EXAMPLES = {
    "VlanSection": "{{access: {0}}} or {{trunk: [{0}, ...]}}",
    "WorkerSection": "{{cpu: {0}}}",
    "BridgeSection": "{{name: {0}}}",
    "MetricsSection": '{{listen: "127.0.0.1:9480"}}',
    "TcpSection": '{{listen: "{0}", certificate: FILE, key: FILE, tokens: [...]}}',
    "TokenSection": "{{name: NAME, file: {0}}}",
    "MemorySection": "{{size: {0}}}",
}


def _reason(kind: str, message: str, given: Any, context: Mapping[str, Any]) -> str:
    if kind == "missing":
        return "this required key is missing"
    if kind in _SHAPES:
        example = _EXAMPLES.get(str(context.get("class_name")), "")
        hint = f": write {example.format(given)}" if example and isinstance(given, str | int) else ""
        return f"{_SHAPES[kind]}, not {values.show(given)}{hint}"
    if kind == "literal_error":
        return _not_one_of(str(context.get("expected", "")), given)
    if kind == "too_long":
        return f"has more than {context.get('max_length')} items"
    return message


def _not_one_of(expected: str, given: Any) -> str:
    words = re.findall(r"'([^']*)'", expected)
    if given is None:
        return "has no value: give one, or remove the key"
    if not words:
        return f"must be {expected}, not {values.show(given)}"
    near = difflib.get_close_matches(str(given), words, n=1, cutoff=0.6)
    hint = f": did you mean '{near[0]}'?" if near else ""
    choice = f"{', '.join(words[:-1])} or {words[-1]}"
    return f"must be {choice}, not {values.show(given)}{hint}"
