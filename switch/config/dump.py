# SPDX-License-Identifier: Apache-2.0
"""Models -> YAML that reads back equal, and a fingerprint of what a configuration says."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml

from switch.config.models import Config

_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*", re.ASCII)
_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that any YAML reader could take for something else."""

    def represent_data(self, data: Any) -> yaml.Node:
        if isinstance(data, str):
            bare = _BARE.fullmatch(data) and data.lower() not in _WORDS
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if bare else '"')
        return super().represent_data(data)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_data(config: Config) -> dict[str, Any]:
    """The keys that differ from their defaults, as plain JSON types; `version` and each port's `type` always.

    Not JSON itself in one place: the keys of rx_affinity are numbers.
    """
    data: dict[str, Any] = {"version": config.version}
    data |= config.model_dump(mode="json", exclude_defaults=True)
    if "ports" in data:
        data["ports"] = [_port_data(port) for port in data["ports"]]
    return data


def _port_data(port: dict[str, Any]) -> dict[str, Any]:
    """Name and type first; queues as the numbers that they are (JSON keys are text)."""
    data = {"name": port["name"], "type": port["type"], **port}
    if "rx_affinity" in data:
        data["rx_affinity"] = {int(queue): cpu for queue, cpu in data["rx_affinity"].items()}
    return data


def to_yaml(data: Any) -> str:
    """YAML of plain data that every reader understands alike: a MAC address in it is a text, for instance."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120)


def dump_config(config: Config) -> str:
    """YAML for this configuration. Paths are absolute, defaults are left out."""
    return to_yaml(as_data(config))


def config_hash(config: Config) -> str:
    """SHA-256 of what the configuration says: equal for files that differ in comments, order of keys or spelling."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
