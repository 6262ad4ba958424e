# SPDX-License-Identifier: Apache-2.0
"""A program run by an ordinary user: another uid, no group but its own, and no capabilities but those it is given.

What it is made of may lie where only root can go, as a Python in root's home does. So it gets a mount namespace in
which such folders are empty but for that, and a /dev with devices of the test's choice.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.interop import needs

UID = 65534  # nobody
KEPT_DEVICES = ("null", "zero", "full", "random", "urandom", "shm")


def closed_to_others(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that others may not pass."""
    folders = [*reversed(path.parents), path]
    return next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)


def opening(paths: Sequence[Path]) -> list[str]:
    """Shell commands for a mount namespace, after which everybody reaches these folders. $hold: an empty folder."""
    found = {real: closed for path in paths if (closed := closed_to_others(real := path.resolve()))}
    inner = [path for path in found if not any(parent in found for parent in path.parents)]
    words = [(f"$hold/{number}", shlex.quote(str(path))) for number, path in enumerate(inner)]
    return [
        *(f"mkdir {kept} && mount --bind {path} {kept}" for kept, path in words),
        *(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(path))}" for path in {found[path] for path in inner}),
        *(f"mkdir -p {path} && mount --bind {kept} {path}" for kept, path in words),
    ]


def prefix(
    folder: Path, capabilities: Sequence[str] = (), devices: Sequence[str] = (), before: Sequence[str] = ()
) -> list[str]:
    """Put before a command to run it as the user, who then owns `folder`. `devices`: shell commands that fill its /dev.
    `before`: a prefix around this one, of a network namespace for example."""
    needs.root("mounts are made and the user is changed")
    setpriv, unshare = needs.program("setpriv", "util-linux"), needs.program("unshare", "util-linux")
    os.chown(folder, UID, UID)
    given = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    script = folder / "as-user.sh"
    lines = [
        "set -e",
        f"hold={shlex.quote(str(folder))}/hold",
        "mkdir -p $hold && mount -t tmpfs none $hold",
        *opening([Path(sys.prefix), Path(sys.base_prefix), needs.ROOT]),
        "mkdir $hold/dev && mount -t tmpfs -o mode=755,dev none $hold/dev",
        *(f"if [ -d /dev/{name} ]; then mkdir $hold/dev/{name}; else : >$hold/dev/{name}; fi" for name in KEPT_DEVICES),
        *(f"mount --bind /dev/{name} $hold/dev/{name}" for name in KEPT_DEVICES),
        "mount --move $hold/dev /dev",
        *devices,
        f"exec {setpriv} --reuid={UID} --regid={UID} --clear-groups"
        f' --bounding-set={given} --inh-caps={given} --ambient-caps={given} "$@"',
    ]
    script.write_text("\n".join(lines) + "\n")
    return [*before, unshare, "--mount", "--propagation", "private", "sh", str(script)]
