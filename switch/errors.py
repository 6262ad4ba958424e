# SPDX-License-Identifier: Apache-2.0
"""Every error the switch raises on purpose.

SwitchError
├── ConfigError     the configuration has faults (all of them are listed)
├── PortError       a port could not be created, changed or found
├── FdbError        a MAC table operation was refused
├── ControlError    the daemon could not be reached, or refused a request
└── NotBuilt        this build lacks an optional part

A message says what was tried, on what, why it failed and what to do about it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass


class SwitchError(Exception):
    """Base of the tree. `str(error)` is fit to be shown to a person."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a configuration. Line and column count from 1; 0 means unknown."""

    path: str
    reason: str
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else (f"{self.file}: " if self.file else "")
        return f"{place}{self.path}: {self.reason}" if self.path else f"{place}{self.reason}"


class ConfigError(SwitchError):
    """The configuration is unusable. `faults` holds every fault found, in file order."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))


class PortError(SwitchError):
    """A port operation failed. `errno` is 0 when the system had no part in it."""

    def __init__(self, port: str, reason: str, errno: int = 0) -> None:
        self.port = port
        self.reason = reason
        self.errno = errno
        super().__init__(f"port {port}: {reason}")


class FdbError(SwitchError):
    """A MAC table operation was refused."""


class ControlError(SwitchError):
    """The control socket could not be reached or the daemon answered with an error."""


class NotBuilt(SwitchError):
    """An optional part is missing from this build or machine; the message names it."""


def cannot_listen(what: str, address: str, key: str, error: OSError) -> SwitchError:
    """For `what`, on `address` that the file names under `key`."""
    hint = {
        errno.EADDRINUSE: f"another process listens there; stop it or change {key}",
        errno.EADDRNOTAVAIL: f"this machine has no such address; change {key}",
        errno.EACCES: f"ports below 1024 need privileges; change {key}",
    }.get(error.errno or 0, f"change {key}")
    return SwitchError(f"cannot listen for {what} on {address}: {(error.strerror or str(error)).lower()}; {hint}")
