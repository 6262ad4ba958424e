# SPDX-License-Identifier: Apache-2.0
"""The configuration file: one YAML document in, immutable models out, every fault with its place.

Importing this package costs nothing: the names below load PyYAML and pydantic when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from switch.config.dump import config_hash, dump_config
    from switch.config.machine import ANY_MACHINE, Machine
    from switch.config.models import Config
    from switch.config.parse import load_config, parse_config, port_from_request, port_from_spec
    from switch.config.ports import PortModel, PortSection

__all__ = [
    "ANY_MACHINE",
    "Config",
    "Machine",
    "PortModel",
    "PortSection",
    "config_hash",
    "dump_config",
    "load_config",
    "parse_config",
    "port_from_request",
    "port_from_spec",
]

_HOME = {
    "ANY_MACHINE": "machine",
    "Config": "models",
    "Machine": "machine",
    "PortModel": "ports",
    "PortSection": "ports",
    "config_hash": "dump",
    "dump_config": "dump",
    "load_config": "parse",
    "parse_config": "parse",
    "port_from_request": "parse",
    "port_from_spec": "parse",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
