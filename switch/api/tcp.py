# SPDX-License-Identifier: Apache-2.0
"""The API over TCP: TLS, a token, and limits that strangers cannot pass (connections.py).

Theory of operation. New credentials hold for the next connection, and those that run go on: a reload closes only what
came with a token that is no more. What goes wrong here stays here: the switch starts and runs without this listener,
which is tried again until it works.

A change has two phases, so that applying a configuration stays all or nothing: `prepare` reads the files and binds the
address, `commit` puts both in place and cannot fail, `discard` forgets them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from fastapi import FastAPI

from switch.api.addresses import listen_tcp, takes_over
from switch.api.connections import Connections
from switch.api.credentials import Credentials, changes, load_credentials
from switch.config.models import TcpSection
from switch.config.values import format_address
from switch.errors import SwitchError
from switch.metrics import REFUSALS, ApiFacts
from switch.plan import AddListener, DelListener, SetListener, Step

log = logging.getLogger("switch.api")

RETRY = 10.0  # seconds between two tries to open what could not be opened


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
        self._wanted, self._failed = new.section, ""
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
        return [*failed, *filter(None, [self._credentials.warning() if self._credentials else ""])]

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
