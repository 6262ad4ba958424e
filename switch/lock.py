# SPDX-License-Identifier: Apache-2.0
"""A lock that one process has while it lives: a file that the kernel locks (flock), with its holder's number in it.

Theory of operation. The kernel ends the lock with the process, however that ends. A file that was left behind therefore
says nothing; only its lock does. Whoever lets go removes the file while it still holds it, and whoever takes it looks
afterwards whether what it locked is still the file of that name: so a removal by a holder never gives two processes one
lock. A person who removes it under a holder opens it to others: who needs more looks at the thing itself as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path


class Held(Exception):
    """Another process has the lock. `holder` is a few words about it."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


class Lock:
    """A lock that is held until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lock:
        """Held when another process has it, OSError when the file cannot be made or locked."""
        while True:
            # Nobody else may open it, or any user could keep the daemon from starting. No O_TRUNC: it is not ours yet.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(descriptor, path):
                    with contextlib.suppress(OSError):  # a full disk: then nobody can be told who has it
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                    return cls(path, descriptor)
            except BlockingIOError:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise Held(holder) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its last holder removed it meanwhile: lock the new one

    def release(self) -> None:
        """Idempotent."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if _same(self._descriptor, self._path):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1


def _same(descriptor: int, path: Path) -> bool:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "is there and is no file")
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)


def _holder(descriptor: int) -> str:
    """From the file, in which its holder may not have written yet; what stands there then is of one that is gone."""
    try:
        pid = int(os.pread(descriptor, 32, 0).strip().decode("ascii"))
        os.kill(pid, 0)
    except PermissionError:
        return f"process {pid}, another user's"
    except (OSError, ValueError, OverflowError):
        return "a process that starts at this moment"
    return f"process {pid}"
