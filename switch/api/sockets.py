# SPDX-License-Identifier: Apache-2.0
"""The control socket: taken over from a daemon that died, never from one that lives; its mode and group are the access
control.

Theory of operation. A lock beside the socket (switch.lock) decides which of two daemons may look at all: between
finding that nobody listens on a socket, removing it and listening on a new one, another daemon could do the same. It is
kept as long as the socket. Nobody listens without it, except when its file was removed under a running daemon; then the
socket answers, and that is looked at too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from pathlib import Path

from switch.errors import SwitchError
from switch.lock import Held, Lock

DEFAULT_DIRECTORY = Path("/run/switch")


class ControlSocket:
    """A listening socket and the path that leads to it."""

    def __init__(self, path: Path, mode: int, gid: int | None, backlog: int, lock: Lock) -> None:
        self._path = path
        self._mode = mode
        self._gid = gid
        self._backlog = backlog
        self._lock = lock
        self._listen()

    def _listen(self) -> None:
        self.listener = _listen(self._path, self._mode, self._gid, self._backlog, _what(self._path))
        self._inode = self._path.lstat().st_ino

    def renew(self) -> socket.socket | None:
        """A new listener, when somebody removed the path; whoever served the old one closes it. None when the path is
        there: what somebody put in its place is not ours. SwitchError says why it cannot be made."""
        if os.path.lexists(self._path):
            return None
        self._listen()
        return self.listener

    def release(self) -> None:
        """Close, and remove the path if it is still ours."""
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        self.listener.close()
        self._lock.release()


def claim_socket(path: Path, mode: int, gid: int | None, backlog: int = 64) -> ControlSocket:
    """Listen on `path`. SwitchError says why not and what to do."""
    what = _what(path)
    if not path.parent.is_dir():
        if path.parent != DEFAULT_DIRECTORY:
            raise SwitchError(f"{what}: directory {path.parent} does not exist; create it, or change control.socket")
        try:
            path.parent.mkdir(mode=0o755)
        except OSError as error:
            raise SwitchError(
                f"{what}: directory {path.parent} does not exist and cannot be created ({error.strerror}); "
                "create it for this user, or set control.socket to a path in a directory you may write"
            ) from error
    lock = _lock(path, what)
    try:
        _remove_stale(path, what)
        return ControlSocket(path, mode, gid, backlog, lock)
    except BaseException:
        lock.release()
        raise


def _what(path: Path) -> str:
    return f"cannot listen on control socket {path}"


def _lock(path: Path, what: str) -> Lock:
    file = path.with_name(path.name + ".lock")
    try:
        return Lock.take(file)
    except Held as held:
        raise SwitchError(
            f"{what}: a running switchd owns it ({held.holder}); stop that one first, or give this one another "
            "control.socket"
        ) from None
    except OSError as error:
        hint = {
            errno.EACCES: "it may be another user's, or the directory is; run as that user, remove the file if no "
            "switchd runs there, or change control.socket",
            errno.EROFS: f"{path.parent} is on a read-only file system; change control.socket",
            errno.ELOOP: "a symbolic link is there; remove it",
        }.get(error.errno or 0, "see control in the configuration")
        raise SwitchError(f"{what}: cannot lock {file}: {error.strerror or error}; {hint}") from error


def _listen(path: Path, mode: int, gid: int | None, backlog: int, what: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    bound = False
    try:  # nobody can connect before listen(), so there is no moment with another mode or group
        listener.bind(str(path))
        bound = True
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if bound:
            with contextlib.suppress(OSError):
                path.unlink()
        hint = {
            errno.EACCES: f"this user may not write to {path.parent}; run as another user or change control.socket",
            errno.EPERM: f"this user is not a member of group {gid}; add it, or change control.group",
            errno.EROFS: f"{path.parent} is on a read-only file system; change control.socket",
            errno.EADDRINUSE: "another daemon took it this moment",
        }.get(error.errno or 0, "see control in the configuration")
        raise SwitchError(f"{what}: {error.strerror or error}; {hint}") from error
    return listener


def _remove_stale(path: Path, what: str) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SwitchError(f"{what}: {error.strerror}; run as another user or change control.socket") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SwitchError(f"{what}: a file that is no socket is there; remove it or change control.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            pass  # nobody listens: left by a daemon that was killed
        except FileNotFoundError:
            return
        except OSError as error:
            raise SwitchError(
                f"{what}: it exists and cannot be probed ({error.strerror or error}); "
                "stop the daemon that owns it, or change control.socket"
            ) from error
        else:
            raise SwitchError(
                f"{what}: a running switchd owns it ({_listener(probe)}); stop that one first, or give this one "
                "another control.socket"
            )
    try:
        path.unlink()
    except OSError as error:
        raise SwitchError(f"{what}: a stale socket is there and cannot be removed ({error.strerror})") from error


def _listener(probe: socket.socket) -> str:
    """Who listens at the other end."""
    pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return f"process {pid}" if pid else "a process that is not seen from here: in another container?"
