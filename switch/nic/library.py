# SPDX-License-Identifier: Apache-2.0
"""Loading pyverbs, late and with a precise word on what is missing."""

from __future__ import annotations

import importlib
import logging
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switch.errors import NotBuilt

DISTRIBUTION = Path("/usr/lib/python3/dist-packages/pyverbs")  # where Debian and Ubuntu put python3-pyverbs


@dataclass(frozen=True, slots=True)
class Verbs:
    """The modules of pyverbs by their names, and its constants."""

    base: Any
    cq: Any
    device: Any
    flow: Any
    mr: Any
    pd: Any
    qp: Any
    spec: Any
    wq: Any
    enums: Any
    Error: type[Exception]


def load() -> Verbs:
    """pyverbs, or NotBuilt with what to install."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        # First of all, because the others need it: it sets up logging for everybody when it is imported.
        base = importlib.import_module("pyverbs.base")
        names = ("cq", "device", "flow", "mr", "pd", "qp", "spec", "wq")
        modules = {name: importlib.import_module(f"pyverbs.{name}") for name in names}
        try:
            enums = importlib.import_module("pyverbs.libibverbs_enums")
        except ModuleNotFoundError:  # rdma-core before 50
            enums = importlib.import_module("pyverbs.enums")
        errors = importlib.import_module("pyverbs.pyverbs_error")
    except ImportError as error:
        raise NotBuilt(why_missing(error)) from None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return Verbs(base=base, enums=enums, Error=errors.PyverbsError, **modules)


def why_missing(error: ImportError, distribution: Path = DISTRIBUTION) -> str:
    """A sentence about an import that failed."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "pyverbs":
        if not distribution.exists():
            return (
                "pyverbs is not installed: install the version of your rdma-core, on Debian and Ubuntu with: "
                "apt-get install python3-pyverbs ibverbs-providers"
            )
        site = sysconfig.get_paths()["purelib"]
        suffix = sysconfig.get_config_var("EXT_SUFFIX") or ""
        if not any(distribution.glob(f"device*{suffix}")):
            found = ", ".join(sorted(path.name for path in distribution.glob("device*.so"))) or "none"
            return (
                f"python3-pyverbs is installed, but not for this Python {sys.version_info.major}."
                f"{sys.version_info.minor} ({suffix}; it has {found}): run the switch with the distribution's Python"
            )
        return f"python3-pyverbs is installed, but this Python does not see it: ln -s {distribution} {site}/"
    if "cannot open shared object file" in text:
        library = text.split(":")[0]
        return f"{library} is missing: apt-get install libibverbs1 librdmacm1 ibverbs-providers"
    if "undefined symbol" in text or "version `" in text:
        return f"pyverbs does not belong to the libibverbs of this machine ({text}): install the one of its rdma-core"
    return f"pyverbs cannot be loaded: {text}"
