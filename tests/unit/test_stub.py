# SPDX-License-Identifier: Apache-2.0
"""switch/_core.pyi names exactly what the compiled module has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

STUB = Path(__file__).resolve().parents[2] / "switch/_core.pyi"


def surface_of_stub() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)} - {"__init__"}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = set()
    return found


def test_stub_names_what_the_module_has() -> None:
    core = pytest.importorskip("switch._core", reason="the project is not installed: pip install .")
    real: dict[str, set[str]] = {}
    for name, value in vars(core).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type) and not issubclass(value, Exception):
            real[name] = {item for item in vars(value) if not item.startswith("_")}
        else:
            real[name] = set()
    assert surface_of_stub() == real
