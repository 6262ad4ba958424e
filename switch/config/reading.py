# SPDX-License-Identifier: Apache-2.0
"""A file that somebody names is read whole, in bounded time and memory, or refused with the reason.

A pipe is read, too: `swctl validate <(make-config)`. One into which nobody writes would be waited for in vain, and a
device may have no end.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

MAX_BYTES = 8 << 20
PATIENCE = 10.0  # seconds for a pipe's writer to say everything
_CHUNK = 1 << 20


def read_bytes(path: Path, most: int) -> bytes:
    """OSError when it cannot be read, or is not a file of at most `most` bytes."""
    # Not to wait for the writer of a pipe, nor for a terminal's line.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise _refusal(errno.EISDIR, "it is a directory, name a file")
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise _refusal(errno.EINVAL, "it is a device, name a file")
        pipe = stat.S_ISFIFO(mode)
        found = _all_of(descriptor, most)
    finally:
        os.close(descriptor)
    if len(found) > most:
        raise _refusal(errno.EFBIG, f"it is larger than {most >> 20} MiB: not a configuration")
    if pipe and not found:
        raise _refusal(errno.ENODATA, "it is a pipe into which nobody writes")
    return found


def _all_of(descriptor: int, most: int) -> bytes:
    deadline = time.monotonic() + PATIENCE
    found = bytearray()
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while len(found) <= most:
        try:  # first, since poll says nothing of a pipe that never had a writer
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            if waiting.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                continue
            raise _refusal(errno.ETIMEDOUT, f"it is a pipe whose writer did not end within {PATIENCE:g} s") from None
        if not chunk:
            break
        found += chunk
    return bytes(found)


def _refusal(number: int, why: str) -> OSError:
    return OSError(number, why)
