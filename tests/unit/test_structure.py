# SPDX-License-Identifier: Apache-2.0
"""The shape of the house, checked: dependencies point downwards, files stay small, nothing is left half-done."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a folder of core_cpp may include besides itself.
CORE_LAYERS: dict[str, set[str]] = {
    "base": set(),
    "stats": {"base"},
    "mem": {"base"},
    "net": {"base", "stats"},
    "virtio": {"base", "stats", "mem", "net"},
    "vhost_user": {"base", "stats", "mem", "net", "virtio"},
    "vhost_kernel": {"base", "stats", "mem", "net", "virtio"},
    "l2": {"base", "stats", "net"},
    "port": {"base", "stats", "mem", "net", "virtio", "vhost_user", "vhost_kernel"},
    "worker": {"base", "stats", "mem", "net", "l2", "port"},
    "": {"base", "stats", "mem", "net", "l2", "port", "worker"},  # the facade, datapath.{h,cc}
    "bindings": {"", "base", "stats", "virtio", "vhost_user", "net"},
}
# Where only some headers of a lower folder may be seen: whoever moves frames knows ports by their interface only.
CORE_DOORS: dict[tuple[str, str], set[str]] = {
    ("worker", "port"): {"port/port.h", "port/egress.h"},
    ("", "port"): {"port/port.h", "port/nic.h"},
}
# The bindings know the facade; the test guest of switch/testing drives the front-end directly.
BINDINGS_GUEST = "guest"

# What a module of switch/ may import from switch/ besides itself. Modules not named here sit on top and may import all
# of these; nobody imports a top module (TOP) but another top module.
PYTHON_LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "lock": set(),
    "watch": set(),
    "capture": set(),
    "config": {"errors", "datapath"},
    "datapath": {"errors", "capture", "native"},
    "native": {"errors", "capture", "datapath"},
    "plan": {"errors", "config", "datapath"},
    "learning": {"errors", "config", "datapath", "plan"},
    "metrics": {"errors", "config", "datapath"},
    "nic": {"errors", "datapath"},
    "cli": {"errors", "config", "plan", "api", "capture"},
}
TOP = {"daemon", "demo", "cli"}
CORE_IMPORTERS = ("switch/native.py", "switch/datapath.py", "switch/testing/")
IO_MODULES = {
    "socket",
    "subprocess",
    "asyncio",
    "urllib",
    "http",
    "selectors",
    "multiprocessing",
    "threading",
    "shutil",
}


def tracked(*patterns: str) -> list[Path]:
    """Files of the project: what git tracks, or the whole tree where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
        return sorted(path for path in found if path.is_file())
    return sorted(path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts)


CPP = tracked("core_cpp/*.h", "core_cpp/*.cc")
PYTHON = tracked("switch/*.py")
CODE = tracked("*.h", "*.cc", "*.py", "*.sh")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(include: str) -> str:
    return include.split("/")[0] if "/" in include else ""


def upward_includes(layer: str, file: str, text: str) -> list[str]:
    """The includes of `text` that a file of `layer` must not have."""
    wrong = []
    for include in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        other = folder_of(include)
        doors = CORE_DOORS.get((layer, other), set())
        if other == layer or (other in CORE_LAYERS.get(layer, set()) and (not doors or include in doors)):
            continue
        wrong.append(f"{file}: includes {include}")
    return wrong


def imports_of(text: str) -> set[str]:
    """Dotted names that the source imports, at any depth of the code; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def switch_modules(names: set[str]) -> set[str]:
    return {parts[1] for name in names if (parts := name.split("."))[0] == "switch" and len(parts) > 1}


def test_core_includes_point_downwards() -> None:
    wrong = []
    for path in CPP:
        layer = folder_of(path.relative_to(ROOT / "core_cpp").as_posix())
        assert layer in CORE_LAYERS, f"{relative(path)}: a new folder needs a place in CORE_LAYERS and CMakeLists.txt"
        if layer == "bindings" and BINDINGS_GUEST in path.stem:
            continue
        wrong += upward_includes(layer, relative(path), path.read_text())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("layer", "include"),
    [("base", "net/frame.h"), ("l2", "port/port.h"), ("worker", "port/tap.h"), ("net", "virtio/guest_memory.h")],
)
def test_an_upward_include_is_found(layer: str, include: str) -> None:
    assert upward_includes(layer, "x.h", f'#include "{include}"\n')


def test_headers_are_guarded() -> None:
    assert not [relative(path) for path in CPP if path.suffix == ".h" and "#pragma once" not in path.read_text()]


def test_python_imports_point_downwards() -> None:
    wrong = []
    for path in PYTHON:
        module = path.relative_to(ROOT / "switch").parts[0].removesuffix(".py")
        allowed = PYTHON_LAYERS.get(module)
        for other in switch_modules(imports_of(path.read_text())) - {module, "__version__", "_core"}:
            if not (ROOT / "switch" / other).exists() and not (ROOT / "switch" / f"{other}.py").exists():
                continue  # a name of switch/__init__.py
            if (allowed is not None and other not in allowed) or (other in TOP and module not in TOP | {"__main__"}):
                wrong.append(f"{relative(path)}: imports switch.{other}")
    assert not wrong, "\n".join(wrong)


def test_only_the_native_datapath_and_the_test_guest_import_the_compiled_module() -> None:
    wrong = [
        relative(path)
        for path in PYTHON
        if "_core" in switch_modules(imports_of(path.read_text())) and not relative(path).startswith(CORE_IMPORTERS)
    ]
    assert not wrong


def test_only_nic_imports_pyverbs() -> None:
    wrong = [
        relative(path)
        for path in PYTHON
        if not relative(path).startswith("switch/nic/")
        and any(name.split(".")[0] == "pyverbs" for name in imports_of(path.read_text()))
    ]
    assert not wrong


def test_config_and_plan_do_no_io_beyond_the_file() -> None:
    wrong = []
    for path in PYTHON:
        if relative(path).startswith(("switch/config/", "switch/plan.py")):
            reached = {name.split(".")[0] for name in imports_of(path.read_text())} & IO_MODULES
            wrong += [f"{relative(path)}: imports {name}" for name in sorted(reached)]
    assert not wrong, "\n".join(wrong)


def test_the_command_line_starts_without_the_compiled_module_and_the_server() -> None:
    if not (ROOT / "switch/cli").is_dir():
        pytest.fail("switch/cli is missing")
    heavy = "{'switch._core', 'fastapi', 'uvicorn', 'scapy'}"
    probe = f"import sys; import switch.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    wrong = []
    for path in CODE:
        lines = path.read_text().splitlines()
        if len(lines) > 800:
            wrong.append(f"{relative(path)}: {len(lines)} lines, split it")
        elif len(lines) > 500 and "why so long" not in "\n".join(lines[:40]).lower():
            wrong.append(f"{relative(path)}: {len(lines)} lines without a 'Why so long' at its head")
    assert not wrong, "\n".join(wrong)


def test_every_file_names_its_licence_first() -> None:
    wrong = []
    for path in CODE:
        lines = [line for line in path.read_text().splitlines()[:2] if not line.startswith("#!")]
        if lines and "SPDX-License-Identifier: Apache-2.0" not in lines[0]:
            wrong.append(relative(path))
    assert not wrong, "\n".join(wrong)


def test_nothing_is_marked_unfinished() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    wrong = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in CODE + tracked("*.md", "*.yaml", "*.yml", "Makefile", "CMakeLists.txt")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_links_between_pages_lead_somewhere() -> None:
    wrong = []
    for path in tracked("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in link and not (path.parent / link).exists():
                wrong.append(f"{relative(path)}: {link}")
    assert not wrong, "\n".join(wrong)
