# SPDX-License-Identifier: Apache-2.0
"""The API over TCP: TLS, a token, and limits that strangers cannot pass (connections.py).

Theory of operation. New credentials hold for the next connection, and those that run go on: a reload closes only what
came with a token that is no more. What goes wrong here stays here: the switch starts and runs without this listener,
which is tried again until it works.

Certificates are short-lived, and programs renew their files at any hour: files that changed are taken up by themselves.
A pair of files is replaced one after the other, so they are read when two looks found the same. Whoever may come in is
another matter, and a person's: tokens stay until somebody reloads.

A change has two phases, so that applying a configuration stays all or nothing: `prepare` reads the files and binds the
address, `commit` puts both in place and cannot fail, `discard` forgets them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI

from switch.api.addresses import listen_tcp, takes_over
from switch.api.connections import Connections
from switch.api.credentials import Credentials, Stamp, changes, load_credentials, stamp_of
from switch.config.models import TcpSection
from switch.config.values import format_address
from switch.errors import SwitchError
from switch.metrics import REFUSALS, ApiFacts
from switch.plan import AddListener, DelListener, SetListener, Step

log = logging.getLogger("switch.api")

RETRY = 10.0  # seconds between two tries to open what could not be opened
LOOK = 5.0  # seconds between two looks at the certificate files


@dataclass(slots=True)
class Prepared:
    """What `commit` puts in place. Without credentials: nothing, the listener goes."""

    credentials: Credentials | None
    sockets: list[socket.socket] | None  # None: those that are open stay
    still_failing: bool = False  # what is wanted stays the same, and does not work now either


class TcpListener:
    """See the head of this file. Everything on one event loop."""

    def __init__(self) -> None:
        self._wanted: TcpSection | None = None
        self._credentials: Credentials | None = None
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections = Connections(lambda: self._credentials)
        self._failed = ""  # why what is wanted is not open
        self._not_renewed = ""  # why the files that are there now are not used
        self._last_look: Stamp = ()
        self.tell: Callable[[str, str], object] = lambda kind, detail: None
        """Of what happened by itself: the kind of an event, and its detail."""
        self._trying = asyncio.Lock()  # two that bind an address at once would be in each other's way

    # ---- life ----

    def serve(self, app: FastAPI) -> None:
        """Whom requests go to; before anything else."""
        self._connections.serve(app)

    async def demand(self, section: TcpSection | None) -> Step | None:
        """Be as the section says; what cannot be is tried again until it can. Nothing is open meanwhile. Returns what
        was changed."""
        try:
            prepared = await self.prepare(section)
        except SwitchError as error:
            self._close()
            self._wanted, self._failed = section, str(error)
            for line in self._failed.splitlines():
                log.error("%s", line)
            log.error("the API is not served over TCP; it is tried again every %g seconds", RETRY)
            return None
        step = self.step(prepared)
        self.commit(prepared)
        return step

    async def keep_trying(self) -> None:
        """For ever: open what is wanted and could not be opened."""
        while True:
            await asyncio.sleep(RETRY)
            async with self._trying:
                section = self._wanted
                if section is None or not self._failed:
                    continue
                try:
                    prepared = await self._prepare(section)
                except SwitchError as error:
                    if self._failed and self._wanted is section:
                        self._failed = str(error)
                    continue
                if self._failed and self._wanted is section:
                    self.commit(prepared)
                else:
                    self.discard(prepared)  # somebody applied another configuration meanwhile

    async def keep_renewing(self) -> None:
        """For ever: take up certificate files that changed."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self.look()
            except Exception:
                log.exception("looking at the certificate files failed")

    async def look(self) -> None:
        """Once in LOOK seconds."""
        async with self._trying:
            old = self._credentials
            if old is None:
                return
            last, self._last_look = self._last_look, await asyncio.to_thread(stamp_of, old.section)
            if self._last_look == old.stamp:
                self._not_renewed = ""
                return
            if self._last_look != last:
                return  # somebody is at it
            try:
                new = await asyncio.to_thread(load_credentials, old.section, old.tokens)
            except SwitchError as error:
                self._refuse_renewal(str(error))
                return
            if self._credentials is not old:
                return  # a configuration was applied meanwhile
            self.commit(Prepared(new, None))
            if differences := changes(old, new):
                detail = SetListener(format_address(new.section.listen), differences).describe()
                log.info("%s", detail)
                self.tell("config_changed", detail)

    def _refuse_renewal(self, why: str) -> None:
        if self._not_renewed == why:
            return
        self._not_renewed = why
        for line in self._renewal_warnings():
            log.warning("%s", line)
        self.tell("config_refused", "; ".join(self._renewal_warnings()))

    def _renewal_warnings(self) -> list[str]:
        return [
            f"the certificate files changed and are not used, those of before stay: {line}"
            for line in self._not_renewed.splitlines()
        ]

    async def prepare(self, section: TcpSection | None) -> Prepared:
        """Everything that can fail. What does not work already, and shall stay the same, is no reason to refuse the
        rest of a configuration."""
        if section is None:
            return Prepared(None, None)
        async with self._trying:
            try:
                return await self._prepare(section)
            except SwitchError as error:
                if not self._failed or section != self._wanted:
                    raise
                self._failed = str(error)
                return Prepared(None, None, still_failing=True)

    async def _prepare(self, section: TcpSection) -> Prepared:
        credentials = await asyncio.to_thread(load_credentials, section)
        if self._sockets and self._wanted is not None and self._wanted.listen == section.listen:
            return Prepared(credentials, None)
        with takes_over(self._sockets):
            sockets = await asyncio.to_thread(listen_tcp, *section.listen, bool(self._sockets))
        return Prepared(credentials, sockets)

    def discard(self, prepared: Prepared) -> None:
        for opened in prepared.sockets or ():
            opened.close()

    def commit(self, prepared: Prepared) -> None:
        """Put it in place. Connections whose token is still good go on, unless other certificates are asked for."""
        if prepared.still_failing:
            return
        if prepared.credentials is None:
            if self._sockets:
                log.info("the API is not served over TCP any more")
            self._close()
            self._wanted, self._failed = None, ""
            return
        old, new = self._credentials, prepared.credentials
        self._wanted, self._failed, self._not_renewed = new.section, "", ""
        self._credentials = new
        if prepared.sockets is not None:
            self._stop_listening()
            self._sockets = prepared.sockets
            self._accepting = [asyncio.create_task(self._connections.accept(one)) for one in self._sockets]
            log.info("the API is served at %s", self.url)
        self._connections.retire(new.tokens if old is None or old.client_ca == new.client_ca else ())
        if warning := new.warning():
            log.warning("%s", warning)

    async def close(self) -> None:
        """The daemon stops."""
        accepting = self._accepting
        self._close()
        await self._connections.ended()
        await asyncio.gather(*accepting, return_exceptions=True)

    def _close(self) -> None:
        self._stop_listening()
        self._credentials = None
        self._connections.retire()

    def _stop_listening(self) -> None:
        for task in self._accepting:
            task.cancel()
        for opened in self._sockets:
            asyncio.get_running_loop().remove_reader(opened)
            opened.close()
        self._accepting, self._sockets = [], []

    # ---- what others see ----

    @property
    def url(self) -> str:
        """Where it listens; "" when it does not."""
        if not self._sockets or self._wanted is None:
            return ""
        port = self._sockets[0].getsockname()[1]
        return f"https://{format_address((self._wanted.listen[0] or socket.gethostname(), port))}"

    def warnings(self) -> list[str]:
        """Sentences that a person should read."""
        failed = [f"the API is not served over TCP: {line}" for line in self._failed.splitlines()]
        expiry = self._credentials.warning() if self._credentials else ""
        return [*failed, *self._renewal_warnings(), *filter(None, [expiry])]

    def step(self, prepared: Prepared) -> Step | None:
        """What committing it would change, for `plan`."""
        old, new = self._credentials, prepared.credentials
        if prepared.still_failing:
            return None
        if new is None:
            return DelListener(format_address(self._wanted.listen)) if self._wanted else None
        if old is None:
            return AddListener(format_address(new.section.listen))
        differences = changes(old, new)
        return SetListener(format_address(new.section.listen), differences) if differences else None

    def facts(self) -> ApiFacts | None:
        """For metrics, from any thread."""
        credentials = self._credentials
        if self._wanted is None:
            return None
        return ApiFacts(
            listening=bool(self._sockets),
            connections=len(self._connections),
            refused={reason: self._connections.refusals(reason) for reason in REFUSALS},
            certificate_expires=credentials.certificate.expires if credentials else None,
        )
