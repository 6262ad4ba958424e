# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of the configuration file, for editors, and the key tables of docs/configuration.md from it.

    python -m switch.config.schema > switch/config/schema.json
    python -m switch.config.schema --tables docs/configuration.md

The second form writes the tables between the markers that stand in that file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from switch.config import models, ports
from switch.config.models import Config
from switch.config.ports import PORT_KINDS

_MARKERS = re.compile(r"(<!-- keys of (?P<what>[\w.\[\]]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def json_schema() -> dict[str, Any]:
    schema = Config.model_json_schema(mode="validation")
    known = vars(models) | vars(ports)
    for section in (*(known[name] for name in schema["$defs"]), Config):
        described = schema if section is Config else schema["$defs"][section.__name__]
        written = section.model_construct().model_dump(mode="json", warnings=False)
        for key, property_ in described["properties"].items():
            property_.pop("title", None)
            if property_.pop("default", None) is not None:
                property_["default"] = written[key]  # as a person writes it: "0660", not 432
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Configuration of switchd",
        "description": "One file describes one switch: its workers, bridges and ports. See docs/configuration.md.",
    }


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


def sections() -> dict[str, str]:
    """Name of each section in the documentation -> its definition in the schema."""
    found = {
        "top": "",
        "switch": "SwitchSection",
        "switch.workers[]": "WorkerSection",
        "switch.memory": "MemorySection",
        "control": "ControlSection",
        "control.tcp": "TcpSection",
        "control.tcp.tokens[]": "TokenSection",
        "metrics": "MetricsSection",
        "bridges[]": "BridgeSection",
        "bridges[].static[]": "StaticSection",
        "bridges[].move_damping": "DampingSection",
        "ports[].vlan": "VlanSection",
    }
    return found | {kind: section.__name__ for kind, section in PORT_KINDS.items()}


def table(what: str) -> str:
    """The keys of a section as a Markdown table. "ports[]" is what every kind has; a kind is what only it has."""
    schema = json_schema()
    if what == "ports[]":
        common = set.intersection(*(set(section.model_fields) for section in PORT_KINDS.values())) - {"type", "queues"}
        definition, only = schema["$defs"]["TapPort"], common
    else:
        name = sections()[what]
        definition = schema["$defs"][name] if name else schema
        common = set.intersection(*(set(section.model_fields) for section in PORT_KINDS.values())) - {"queues"}
        only = set(definition["properties"]) - (common if what in PORT_KINDS else set())
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, described in definition["properties"].items():
        if key in only:
            required = key in definition.get("required", ())
            default = "required" if required else _default(described)
            lines.append(f"| `{key}` | {default} | {_limits(described)} |")
    return "\n".join(lines) + "\n"


def _default(described: dict[str, Any]) -> str:
    default = described.get("default")
    if default is None or default == {} or default == []:
        return ""
    if isinstance(default, dict):
        return ""
    return f"`{json.dumps(default)}`"


def _limits(described: dict[str, Any]) -> str:
    text: str = described.get("description", "").replace("|", "\\|")
    choices = described.get("enum")
    number = next((part for part in [described, *described.get("anyOf", [])] if "minimum" in part), None)
    if choices and not all(str(choice) in text for choice in choices):
        text += f" ({', '.join(map(str, choices))})"
    elif number is not None and "maximum" in number and described.get("type") == "integer":
        text += f" ({number['minimum']} to {number['maximum']})"
    return text


def with_tables(page: str) -> str:
    """The page with every table between its markers made anew."""
    return _MARKERS.sub(lambda match: f"{match[1]}{table(match['what'])}{match[3]}", page)


def documented(page: str) -> Iterator[str]:
    """The sections that have a table in the page."""
    return (match["what"] for match in _MARKERS.finditer(page))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m switch.config.schema", description="Write the JSON Schema.")
    parser.add_argument("--tables", metavar="PAGE", help="write the key tables into this Markdown page instead")
    arguments = parser.parse_args()
    if arguments.tables is None:
        sys.stdout.write(schema_text())
    else:
        page = Path(arguments.tables)
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
