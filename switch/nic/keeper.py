# SPDX-License-Identifier: Apache-2.0
"""The devices of all ports whose device the control plane opens, over their life.

Adding such a port needs its device, as with every kind. Later the device may go (unplugged, driver reloaded, firmware
crashed): then only its port goes down, and the keeper tries to open it again every second.

Calls come from two threads: the reconciler's, and the loop's (`ready`, `tick`).
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
from collections.abc import Callable

from switch.datapath import Datapath, PortSpec
from switch.errors import NotBuilt, PortError, SwitchError
from switch.nic.device import NicDevice
from switch.nic.library import Verbs, load

log = logging.getLogger("switch.nic")

KINDS = ("verbs",)


class NicKeeper:
    """`fileno()` is readable when a device has something to say: then call `ready`. Call `tick` every second."""

    def __init__(self, datapath: Datapath, loader: Callable[[], Verbs] = load) -> None:
        self._datapath = datapath
        self._loader = loader
        self._verbs: Verbs | None = None
        self._lock = threading.RLock()
        self._specs: dict[str, PortSpec] = {}
        self._devices: dict[str, NicDevice] = {}
        self._said: dict[str, str] = {}  # port -> why it waits, as it was logged last
        self._epoll = select.epoll()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def added(self, spec: PortSpec) -> None:
        """The datapath has the port: bring its device. PortError: it has none, and the port must go."""
        if spec.type not in KINDS:
            return
        with self._lock:
            self._open(spec)
            self._specs[spec.name] = spec

    def changed(self, spec: PortSpec) -> None:
        """Another MTU counts from the next time the device is opened."""
        with self._lock:
            if spec.name in self._specs:
                self._specs[spec.name] = spec

    def leaving(self, name: str) -> None:
        """Before the datapath removes a port: its device's queues go first, its memory after them."""
        with self._lock:
            self._specs.pop(name, None)
            self._said.pop(name, None)
            self._close(name, "the port is being removed")

    def close(self) -> None:
        with self._lock:
            for name in list(self._specs):
                self.leaving(name)
            self._epoll.close()

    def ready(self) -> None:
        """Some device reported something."""
        with self._lock:
            for name, device in list(self._devices.items()):
                if why := device.take_events():
                    self._lost(name, why)

    def tick(self) -> None:
        """Look after every device: one that a worker found broken is opened anew, one that was away is tried again."""
        with self._lock:
            for name, spec in self._specs.items():
                device = self._devices.get(name)
                if device:
                    if why := self._health(name, device):
                        self._lost(name, why)
                    continue
                try:
                    self._open(spec)
                except PortError as error:
                    self._waits(name, error.reason)
                else:
                    self._said.pop(name, None)
                    log.info("port %s: %s is back", name, spec.device)

    def _health(self, name: str, device: NicDevice) -> str:
        if fault := self._datapath.nic_fault(name):
            return fault
        assert self._verbs is not None
        try:
            device.check_link()
        except self._verbs.Error as error:
            return f"the device does not answer: {error}"
        return ""

    def _open(self, spec: PortSpec) -> None:
        try:
            self._verbs = self._verbs or self._loader()
            device = NicDevice(self._verbs, spec, self._datapath)
        except NotBuilt as error:
            raise PortError(spec.name, str(error)) from None
        self._devices[spec.name] = device
        self._epoll.register(device.event_fd, select.EPOLLIN)

    def _close(self, name: str, why: str) -> None:
        device = self._devices.pop(name, None)
        if device is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(device.event_fd)
        device.close(why)

    def _lost(self, name: str, why: str) -> None:
        log.warning("port %s: %s is opened anew: %s", name, self._specs[name].device, why)
        self._close(name, why)

    def _waits(self, name: str, why: str) -> None:
        with contextlib.suppress(SwitchError):
            self._datapath.nic_detach(name, f"{why}; it is tried again every second")
        if self._said.get(name) != why:
            self._said[name] = why
            log.warning("port %s waits for its device: %s", name, why)
