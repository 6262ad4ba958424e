# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the models: a base that reports every fault at once, and the field types.

Theory of operation. pydantic skips checks between fields once a field is wrong, and knows an unknown key only as
"extra". Section wraps its own validation: it takes unknown keys out (naming the nearest known one), asks the class for
`conflicts` in the raw data, runs pydantic on the rest, and raises all of it together. So each rule stands in the class
it is about, and one run shows every fault.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from annotated_types import GroupedMetadata
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from switch.config import values
from switch.config.machine import Machine

Conflict = tuple[tuple[str | int, ...], str]  # path below the section, reason

MAX_SOCKET_PATH = 107  # bytes in sockaddr_un.sun_path less the closing zero
MAX_NAME = 63
MAX_DEVICE = 15  # IFNAMSIZ less the closing zero
MAX_DEVICE_NAME = 64  # VDUSE allows 255; a name is also shown and typed
MAX_CPU = 8191
MAX_MACS = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_BOOLEAN_WORDS = frozenset(("yes", "no", "on", "off", "y", "n", "true", "false"))


class Context:
    """What validation may ask about the outside. `directory`: where relative paths start; None: they are refused."""

    def __init__(self, machine: Machine, directory: Path | None) -> None:
        self.machine = machine
        self.directory = directory

    @staticmethod
    def of(info: ValidationInfo) -> Context:
        return info.context if isinstance(info.context, Context) else Context(Machine.here(), None)


def fault(reason: str, path: tuple[str | int, ...] = (), given: Any = None, kind: str = "rule") -> InitErrorDetails:
    """One line of a ValidationError. `kind` "key" makes the place that of the key, not of the value."""
    # pydantic substitutes {names} of the context only: a lone "{reason}" keeps braces in the reason as they are.
    return InitErrorDetails(type=PydanticCustomError(kind, "{reason}", {"reason": reason}), loc=path, input=given)


class Section(BaseModel):
    """A mapping of the file. Immutable, knows its keys, reports all its faults at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)

    habits: ClassVar[Mapping[str, str]] = {}  # keys people bring from other switches -> what to write here

    @classmethod
    def conflicts(cls, raw: Mapping[str, Any], context: Context) -> Iterator[Conflict]:
        """Faults between fields. Sees the raw data: every value may be of any type, or absent."""
        return iter(())

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Why `key` is not a key of this section."""
        plain = key.lower().replace("-", "_")
        if plain in cls.habits:
            return f"unknown key '{key}': write {cls.habits[plain]}"
        near = difflib.get_close_matches(plain, list(cls.model_fields), n=1, cutoff=0.6)
        if near:
            return f"unknown key '{key}': did you mean '{near[0]}'?"
        return f"unknown key '{key}': the keys here are {', '.join(cls.model_fields)}"

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        known = {key: value for key, value in data.items() if key in cls.model_fields}
        faults = [fault(cls.unknown_key(str(key)), (key,), kind="key") for key in data if key not in known]
        faults += [fault(reason, path) for path, reason in cls.conflicts(known, Context.of(info))]
        try:
            result = handler(known)
        except ValidationError as error:
            faults += [
                InitErrorDetails(
                    type=PydanticCustomError(line["type"], "{reason}", {"reason": line["msg"], **line.get("ctx", {})}),
                    loc=line["loc"],
                    input=line["input"],
                )
                for line in error.errors(include_url=False)
            ]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return result


def guarded(parse: Callable[[Any], Any], value: Any) -> Any:
    """parse(value), with its ValueError as a fault."""
    if value is None:
        raise PydanticCustomError("rule", "has no value: give one, or remove the key")
    try:
        return parse(value)
    except ValidationError:
        raise
    except ValueError as error:
        raise PydanticCustomError("rule", "{reason}", {"reason": str(error)}) from None


def mappings(value: Any) -> list[tuple[int, dict[Any, Any]]]:
    """The items of a raw list that are mappings, with their positions; nothing when it is no list."""
    items = value if isinstance(value, list) else []
    return [(index, item) for index, item in enumerate(items) if isinstance(item, dict)]


def checked(parse: Callable[[Any], Any]) -> BeforeValidator:
    """A field whose raw value goes through `parse` first."""
    return BeforeValidator(lambda value: guarded(parse, value))


class Together(GroupedMetadata):
    """Several annotations of one field under one name."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[object]:
        return iter(self._parts)


def number_in(low: int, high: int, unit: str = "") -> Together:
    """A whole number within bounds."""

    def parse(value: Any) -> int:
        if not isinstance(value, int) or not values.is_number(value):
            hint = ": remove the quotes" if isinstance(value, str) and value.isdecimal() else ""
            raise ValueError(f"must be a whole number, not {values.show(value)}{hint}")
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}{' ' + unit if unit else ''}, not {value}")
        return value

    return Together(checked(parse), WithJsonSchema({"type": "integer", "minimum": low, "maximum": high}))


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLEAN_WORDS:
        raise ValueError(f"{values.show(value)} is not a truth value here: write true or false, without quotes")
    raise ValueError(f"must be true or false, not {values.show(value)}")


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is text, not {values.show(value)}: put it in quotes")
    if not value:
        raise ValueError(f"{what} cannot be empty")
    return value


def _name(value: Any) -> str:
    text = _text("a name", value)
    if len(text) > MAX_NAME:
        raise ValueError(f"{values.show(text)} is longer than {MAX_NAME} characters")
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{values.show(text)} is not a name: letters, digits, '_', '.', '-' only, and not '-' or '.' in front"
        )
    return text


MAX_RDMA_DEVICE = 63


def _rdma_device(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}", value, re.ASCII):
        raise ValueError(f"{values.show(value)} cannot be an RDMA device: rdma link lists them, such as mlx5_0")
    return value


def _device(value: Any) -> str:
    text = _text("a device", value)
    if len(text.encode()) > MAX_DEVICE or text in (".", "..") or not re.fullmatch(r"[!-.0-9;-~]+", text, re.ASCII):
        raise ValueError(
            f"{values.show(text)} cannot be a network device: up to {MAX_DEVICE} characters, no space, '/' or ':'"
        )
    return text


def _device_file(value: Any) -> str:
    text = _text("a device file", value)
    if "\0" in text or not re.fullmatch(r"/dev/.*[^/]", text):
        raise ValueError(f"{values.show(text)} is no device file: write its path, such as /dev/vhost-vdpa-0")
    return resolve_path(text, None)


def _device_name(value: Any) -> str:
    text = _text("a device name", value)
    if len(text) > MAX_DEVICE_NAME or text == "control" or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", text):
        raise ValueError(
            f"{values.show(text)} cannot name a device: up to {MAX_DEVICE_NAME} letters, digits, '.', '_' and '-', "
            "not 'control'"
        )
    return text


def _group(value: Any) -> str:
    return str(value) if values.is_number(value) and value >= 0 else _text("a group", value)


def resolve_path(value: Any, directory: Path | None) -> str:
    """The absolute form of a path in the file; relative ones start at the file's own directory."""
    text = _text("a path", value)
    if "\0" in text:
        raise ValueError("a path cannot hold a zero byte")
    if not text.isprintable():
        raise ValueError(f"{text!a} holds a character that cannot be shown, such as a line's end")
    if not text.startswith("/"):
        if directory is None:
            raise ValueError(f"{values.show(text)} is a relative path: write an absolute one, starting with /")
        text = str(directory / text)
    parts: list[str] = []
    for part in text.split("/"):  # "." and "//" go; ".." stays: only the file system knows what it means
        if part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def resolve_socket(value: Any, directory: Path | None) -> str:
    path = resolve_path(value, directory)
    length = len(path.encode())
    if length > MAX_SOCKET_PATH:
        raise ValueError(
            f"the socket path {values.show(path)} has {length} bytes: the system takes {MAX_SOCKET_PATH} at most"
        )
    return path


def _in_directory(resolve: Callable[[Any, Path | None], str]) -> BeforeValidator:
    def validate(value: Any, info: ValidationInfo) -> Any:
        directory = Context.of(info).directory
        return guarded(lambda given: resolve(given, directory), value)

    return BeforeValidator(validate)


def _known_group(value: Any, info: ValidationInfo) -> Any:
    group = guarded(_group, value)
    if Context.of(info).machine.gid_of(group) is None:
        reason = f"there is no group '{group}' on this machine: create it (groupadd {group}) or name another"
        raise PydanticCustomError("rule", "{reason}", {"reason": reason})
    return group


def _each(pairs: Iterable[tuple[str | int, Any]], parse: Callable[[Any, Any], Any]) -> list[Any]:
    """parse(key, value) of every pair; all their faults at once, each at its key."""
    results, faults = [], []
    for key, value in pairs:
        try:
            results.append(parse(key, value))
        except ValueError as error:
            faults.append(fault(str(error), (key,), value))
    if faults:
        raise ValidationError.from_exception_data("items", faults)
    return results


def trunk_vlans(value: Any) -> tuple[int, ...] | None:
    """The VLANs of `trunk`, sorted; None for "all"."""
    if value == "all":
        return None
    if not isinstance(value, list):
        raise ValueError(f'must be "all" or a list such as [10, "20-29"], not {values.show(value)}')
    if not value:
        raise ValueError('is an empty list: write "all" to carry every VLAN, or list the VLANs')
    ranges = _each(enumerate(value), lambda _, item: values.parse_vlan_range(item))
    return tuple(sorted({vlan for vlans in ranges for vlan in vlans}))


def steering(value: Any) -> str:
    """As values.parse_steering, with each fault at its place in the list."""
    if isinstance(value, list):
        _each(enumerate(value), lambda _, mac: values.parse_station_mac(mac))
    return values.parse_steering(value)


def affinity(value: Any) -> dict[int, int]:
    """{queue: cpu}; JSON can only write the queue as text."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of queue to CPU such as {{0: 2, 1: 3}}, not {values.show(value)}")

    def parse(key: Any, cpu: Any) -> tuple[int, int]:
        if not str(key).isdecimal():
            raise ValueError(f"{values.show(key)} is not a queue: write its number, counted from 0")
        if not values.is_number(cpu) or not 0 <= cpu <= MAX_CPU:
            raise ValueError(f"{values.show(cpu)} is not a CPU: write its number, counted from 0")
        return int(key), cpu

    return dict(sorted(_each(value.items(), parse)))


Boolean = Annotated[bool, checked(_boolean)]
Name = Annotated[
    str,
    checked(_name),
    WithJsonSchema({"type": "string", "maxLength": MAX_NAME, "pattern": f"^{_NAME.pattern}$"}),
]
Device = Annotated[
    str, checked(_device), WithJsonSchema({"type": "string", "maxLength": MAX_DEVICE, "pattern": r"^[^\s/:]+$"})
]
RdmaDevice = Annotated[
    str,
    checked(_rdma_device),
    WithJsonSchema({"type": "string", "maxLength": MAX_RDMA_DEVICE, "pattern": r"^[A-Za-z0-9_.-]+$"}),
]
DeviceFile = Annotated[str, checked(_device_file), WithJsonSchema({"type": "string", "pattern": "^/dev/.*[^/]$"})]
DeviceName = Annotated[
    str,
    checked(_device_name),
    WithJsonSchema({"type": "string", "maxLength": MAX_DEVICE_NAME, "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]*$"}),
]
Group = Annotated[
    str,
    BeforeValidator(_known_group),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}]}),
]
SocketPath = Annotated[str, _in_directory(resolve_socket), WithJsonSchema({"type": "string", "minLength": 1})]
DirectoryPath = Annotated[str, _in_directory(resolve_path), WithJsonSchema({"type": "string", "minLength": 1})]
FilePath = Annotated[str, _in_directory(resolve_path), WithJsonSchema({"type": "string", "minLength": 1})]
VlanId = Annotated[
    int,
    checked(values.parse_vlan),
    WithJsonSchema({"type": "integer", "minimum": values.FIRST_VLAN, "maximum": values.LAST_VLAN}),
]


def duration_in(low: int, high: int, zero: str = "") -> Together:
    """Whole seconds from `low` to `high`; `zero`, if given, says what 0 means and allows it."""

    def parse(value: Any) -> int:
        seconds = values.parse_duration(value)
        if not (low <= seconds <= high or (zero and seconds == 0)):
            also = f" or 0 ({zero})" if zero else ""
            raise ValueError(f"must be from {low}s to {high}s{also}, not {values.show(value)}")
        return seconds

    return Together(
        checked(parse),
        PlainSerializer(values.format_duration, when_used="json"),
        WithJsonSchema(
            {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+ *[smhd]?$"}]}
        ),
    )


def size_in(low: int, high: int) -> Together:
    """Bytes, written with or without a unit."""

    def parse(value: Any) -> int:
        count = values.parse_size(value)
        if not low <= count <= high:
            raise ValueError(
                f"must be from {values.format_size(low)} to {values.format_size(high)}, not {values.show(value)}"
            )
        return count

    return Together(
        checked(parse),
        PlainSerializer(values.format_size, when_used="json"),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": low, "maximum": high},
                    {"type": "string", "pattern": r"^[0-9]+ *[KMGT]?(i?B)?$"},
                ]
            }
        ),
    )


MacAddress = Annotated[
    int,
    checked(values.parse_station_mac),
    PlainSerializer(values.format_mac, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"}),
]
_MAC_PATTERN = r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}"
Steering = Annotated[
    str,
    checked(steering),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["all", "leftovers"]},
                {"type": "string", "pattern": rf"^{_MAC_PATTERN}(\s*,\s*{_MAC_PATTERN})*$"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "pattern": f"^{_MAC_PATTERN}$"},
                },
            ]
        }
    ),
]
FileMode = Annotated[
    int,
    checked(values.parse_mode),
    PlainSerializer(values.format_mode, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"}),
]
Trunk = Annotated[
    tuple[int, ...] | None,
    checked(trunk_vlans),
    PlainSerializer(lambda vlans: "all" if vlans is None else values.format_vlans(vlans), when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "all"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "anyOf": [
                            {"type": "integer", "minimum": values.FIRST_VLAN, "maximum": values.LAST_VLAN},
                            {"type": "string", "pattern": "^[0-9]+ *- *[0-9]+$"},
                        ]
                    },
                },
            ]
        }
    ),
]
Affinity = Annotated[
    dict[int, int],
    checked(affinity),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {"^[0-9]+$": {"type": "integer", "minimum": 0, "maximum": MAX_CPU}},
            "additionalProperties": False,
        }
    ),
]
Address = Annotated[
    tuple[str, int],
    checked(values.parse_address),
    PlainSerializer(values.format_address, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": ":[0-9]{1,5}$"}),
]
Listen = Annotated[
    tuple[str, int] | None,
    BeforeValidator(lambda value: None if value is None else guarded(values.parse_listen, value)),
    PlainSerializer(lambda to: "off" if to is None else values.format_address(to), when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": "^off$|:[0-9]{1,5}$"}, {"type": "null"}]}),
]


def or_nothing(value: Any) -> Any:
    """An empty `ports:` is an empty list: what is left when every item is commented out."""
    return () if value is None else value


def several(limit: int) -> Any:
    """The default of a list of up to `limit` items: none."""
    return Field(default=(), strict=False, max_length=limit)
