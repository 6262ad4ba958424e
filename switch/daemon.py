# SPDX-License-Identifier: Apache-2.0
"""switchd: starts what the configuration says, serves the control socket and metrics, stops cleanly.

Order of start: read the file (every fault is printed, nothing is started), claim the control socket (so that two
daemons never touch one set of sockets), leave the workers' CPUs, open the datapath, build bridges and ports, restore
what was changed at run time, serve. Whatever fails undoes what came before it. SIGHUP reads the file again, SIGTERM and
SIGINT stop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from switch.config import Config, Machine, load_config
from switch.datapath import Datapath, DatapathOptions, open_datapath
from switch.errors import ConfigError, SwitchError
from switch.lock import Held, Lock
from switch.notify import Notifier
from switch.watch import WorkerWatch

log = logging.getLogger("switch")

SAVE_INTERVAL = 10.0
SAMPLE_INTERVAL = 2.0
DRAIN_MOST = 1024
DESCRIPTORS = 1 << 20  # where the administrator sets no limit
DRAIN_PAUSE = 0.01  # after a full batch: a flood of events takes the loop's spare time, not all of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `switchd`. Exit status 0: stopped when asked to; 1: could not start."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is served: it must not end a daemon that just starts
    _set_up_log(options.log_level)
    raise_descriptor_limit()
    machine = Machine.here()
    try:
        config = load_config(options.config, machine)
    except ConfigError as error:
        return _refuse(options.config, error)
    except OSError as error:
        print(f"switchd: cannot read {options.config}: {error.strerror}", file=sys.stderr)
        return 1
    if options.check:
        if config.control.tcp:
            from switch.api.credentials import load_credentials

            try:
                load_credentials(config.control.tcp)
            except ConfigError as error:
                return _refuse(options.config, error)
        print(
            f"{options.config}: ok, {_count(len(config.ports), 'port')}, {_count(len(config.all_bridges()), 'bridge')}"
        )
        return 0
    try:
        return asyncio.run(Daemon(config, Path(options.config).absolute(), machine, fresh=options.fresh).run())
    except SwitchError as error:
        print(f"switchd: {error}", file=sys.stderr)
        return 1


def _refuse(path: str, error: ConfigError) -> int:
    for fault in error.faults:
        print(fault, file=sys.stderr)
    print(f"switchd: {_count(len(error.faults), 'fault')} in {path}; nothing was started", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="switchd", description="A poll-mode software switch. See also: swctl.")
    parser.add_argument(
        "--config", "-c", metavar="FILE", default="/etc/switch/switch.yaml", help="default: %(default)s"
    )
    parser.add_argument("--check", action="store_true", help="check the file and exit")
    parser.add_argument("--fresh", action="store_true", help="forget ports and flows of earlier runs")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", metavar="LEVEL",
        help="debug, info, warning or error; `swctl log LEVEL` changes it later (default: %(default)s)",
    )  # fmt: skip
    return parser


def _set_up_log(level: str) -> None:
    """To stderr; without times under systemd, whose journal has its own."""
    journal = bool(os.environ.get("JOURNAL_STREAM"))
    times = "" if journal else "%(asctime)s.%(msecs)03d "
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=times + "%(levelname).1s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S", force=True,
    )  # fmt: skip
    log.setLevel(level.upper())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def raise_descriptor_limit() -> None:
    """A guest takes five descriptors and two for each further ring: the usual soft limit, 1024, ends at some 170
    guests, and nobody could even ask why. The hard limit is what the administrator means."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def leave_worker_cpus(options: DatapathOptions, allowed: frozenset[int]) -> frozenset[int]:
    """Keep this process's other threads off the workers' CPUs, if any CPU is left. Returns where they may run."""
    rest = allowed - set(options.workers) if options.pin else allowed
    if rest and rest != allowed:
        os.sched_setaffinity(0, rest)
        return rest
    return allowed


class Daemon:
    """One run of switchd."""

    def __init__(
        self,
        config: Config,
        path: Path,
        machine: Machine,
        *,
        fresh: bool = False,
        opener: Callable[[DatapathOptions], Datapath] = open_datapath,
    ) -> None:
        self._config = config
        self._path = path
        self._machine = machine
        self._fresh = fresh
        self._opener = opener
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._reloading = asyncio.Lock()

    async def run(self) -> int:
        """Start, serve until told to stop, stop. SwitchError when it could not start."""
        # Signals first: a stop that arrives during start is obeyed as soon as the start is done.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        hung_up: list[bool] = []  # during the start: the file that was read may be an old one
        loop.add_signal_handler(signal.SIGHUP, lambda: hung_up.append(True))
        with contextlib.ExitStack() as stack:
            await self._serve(stack, hung_up)
        log.info("stopped")
        return 0

    async def _serve(self, stack: contextlib.ExitStack, hung_up: list[bool]) -> None:
        from switch.api.app import make_app
        from switch.api.sockets import claim_socket
        from switch.api.tcp import TcpListener
        from switch.config.models import gid_of
        from switch.control import Control
        from switch.metrics import MetricsServer, make_registry
        from switch.nic import NicKeeper
        from switch.state import StateFile

        config, loop = self._config, asyncio.get_running_loop()
        socket_path = Path(config.control.socket)
        gid = gid_of(config.control.group, self._machine)
        control_socket = claim_socket(socket_path, config.control.mode, gid)
        stack.callback(control_socket.release)

        options = config.datapath_options(self._machine)
        allowed = self._machine.cpus or frozenset(os.sched_getaffinity(0))
        leave_worker_cpus(options, allowed)
        stack.callback(_restore_affinity, allowed)
        datapath = self._opener(options)
        stack.callback(datapath.stop)
        datapath.start()
        for warning in datapath.warnings():
            log.warning("%s", warning)

        nics = NicKeeper(datapath)
        stack.callback(nics.close)  # before the datapath stops: devices let go of its memory first

        # systemd's StateDirectory= outlives the runtime directory, which goes when the unit stops.
        kept = config.switch.state_dir or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        directory = Path(kept) if kept else None
        state_file = StateFile.beside(socket_path, directory)
        if directory:  # beside the control socket its lock is enough
            _lock_state(state_file.path, stack)
        if self._fresh:
            state_file.forget()
        listener = TcpListener()
        control = Control(
            datapath, config, self._path, machine=self._machine, state_file=state_file, options=options, helper=nics,
            listener=listener,
        )  # fmt: skip
        listener.tell = control.news
        control.start(state_file.load())
        registry = make_registry(datapath, control.facts)
        url = "off"
        if config.metrics.listen is not None:
            metrics = MetricsServer(*config.metrics.listen, registry)
            stack.callback(metrics.close)
            url = metrics.url

        reader = EventReader(control.drain, datapath.event_fd())
        stack.callback(reader.close)
        loop.add_reader(nics.fileno(), nics.ready)
        stack.callback(loop.remove_reader, nics.fileno())
        self._job(_every(1.0, nics.tick, "looking after NICs"))
        self._job(_every(1.0, control.tick, "ageing"))
        self._job(_every(SAMPLE_INTERVAL, control.sample, "sampling"))
        self._job(self._saves(control.save, control.changed))
        watch = WorkerWatch(
            datapath.worker_rounds,
            lambda kind, detail: loop.call_soon_threadsafe(control.news, kind, detail),
        )
        control.stuck = lambda: watch.stuck
        stack.callback(watch.stop)
        watch.start()
        if interval := Notifier.watchdog_interval():
            self._job(_every(interval, lambda: self._all_is_well(watch), "watchdog"))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._job(self._reload(control)))

        app = make_app(control, registry)
        listener.serve(app)
        await listener.demand(config.control.tcp)
        self._job(listener.keep_trying())
        self._job(listener.keep_renewing())
        self._say_what_runs(control, options, url, listener.url)
        front = ControlFront(control_socket, app)
        self._job(_every(1.0, front.look, "keeping the control socket"))
        self._notifier.send("READY=1", f"STATUS={_count(len(control.reconciler.ports), 'port')}, metrics {url}")
        if hung_up:
            self._job(self._reload(control))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({front.serving, stopping}, return_when=asyncio.FIRST_COMPLETED)

        self._notifier.send("STOPPING=1")
        log.info("stopping")
        stopping.cancel()
        control.events.close()
        await asyncio.gather(front.close(), listener.close())
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await control.save(force=True)

    def _all_is_well(self, watch: WorkerWatch) -> None:
        """Said by the event loop, so not while that hangs; nor while a worker does."""
        if not watch.stuck:
            self._notifier.send("WATCHDOG=1")

    def _say_what_runs(self, control: Any, options: DatapathOptions, url: str, api: str) -> None:
        ports = control.reconciler.ports
        names = ", ".join(f"{spec.name} ({spec.type})" for spec in list(ports.values())[:8])
        more = f" and {len(ports) - 8} more" if len(ports) > 8 else ""
        cpus = ", ".join(map(str, options.workers)) + ("" if options.pin else " (not pinned)")
        log.info(
            "%s runs: %s%s%s; %s on CPU %s, %s; control %s%s; metrics %s",
            self._config.switch.name, _count(len(ports), "port"), f": {names}" if names else "", more,
            _count(len(options.workers), "worker"), cpus, options.polling, self._config.control.socket,
            api and f" and {api}", url,
        )  # fmt: skip

    async def _saves(self, save: Callable[[], Coroutine[Any, Any, None]], changed: asyncio.Event) -> None:
        """A large MAC table takes a while to write: saving never takes more than a few percent of the time."""
        loop = asyncio.get_running_loop()
        least = 0.0
        while True:
            await asyncio.sleep(least)
            # What somebody changed is saved at once, for a daemon that is killed; what was learned can wait.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), SAVE_INTERVAL)
            changed.clear()
            began = loop.time()
            try:
                await save()
            except Exception:
                log.exception("saving the state failed; it is tried again")
            least = 30 * (loop.time() - began)

    async def _reload(self, control: Any) -> None:
        """SIGHUP. A file with faults, or one that cannot be applied, changes nothing."""
        async with self._reloading:  # one after the other: the file as it was last read is what stays
            await self._read_again(control)

    async def _read_again(self, control: Any) -> None:
        log.info("reading %s again", self._path)
        self._notifier.send("RELOADING=1")
        config: Config | None = None
        try:
            config = await asyncio.to_thread(load_config, self._path, self._machine)
            planned = await control.reload(config)
        except ConfigError as error:
            control.refused(None if config else error)  # what `reload` refuses it has noted
            for fault in error.faults:
                log.error("%s", fault)
            log.error("%s has %s: nothing was changed", self._path, _count(len(error.faults), "fault"))
        except (SwitchError, OSError) as error:
            control.refused()
            log.error("%s was not applied: %s", self._path, error)
        except Exception:
            control.refused()
            log.exception("%s was not applied", self._path)
        else:
            log.info("%s applied: %s", self._path, _count(len(planned.steps), "change"))
            for change in planned.restart:
                log.warning("%s needs a restart of switchd to take effect", change)
            if planned.kept:
                log.info("kept, though the file does not name them: %s", ", ".join(planned.kept))
        finally:
            self._notifier.send("READY=1")

    def _job(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


class ControlFront:
    """Serves the API at the control socket. A cleaner of temporary files, or a person, may remove that: then it is made
    again, or nobody could ask anything until a restart."""

    def __init__(self, control_socket: Any, app: Any) -> None:
        self._socket = control_socket
        self._app = app
        self._said = ""
        self._servers: list[tuple[Any, asyncio.Task[None]]] = []
        self.serving = self._serve(control_socket.listener)

    def _serve(self, listener: socket.socket) -> asyncio.Task[None]:
        server = _make_server(self._app)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        self._servers.append((server, task))
        return task

    def look(self) -> None:
        """Once a second."""
        try:
            listener = self._socket.renew()
        except SwitchError as error:
            if str(error) != self._said:
                log.error("the control socket was removed by somebody, and %s; it is tried again", error)
            self._said = str(error)
            return
        self._said = ""
        if listener:
            log.warning("the control socket was removed by somebody: listening there again")
            for accepting in self._servers[-1][0].servers:
                accepting.close()  # who came by it before is served on
            self._serve(listener)

    async def close(self) -> None:
        for server, _ in self._servers:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in self._servers))


class EventReader:
    """Drains the datapath's events when its descriptor says so, with a pause after a full batch."""

    def __init__(self, drain: Callable[[int], int], descriptor: int) -> None:
        self._drain = drain
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(descriptor, self._ready)

    def _ready(self) -> None:
        try:
            count = self._drain(DRAIN_MOST)
        except SwitchError as error:
            log.error("cannot read events: %s", error)
            count = DRAIN_MOST
        if count >= DRAIN_MOST:
            self._loop.remove_reader(self._descriptor)
            self._pause = self._loop.call_later(DRAIN_PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._descriptor, self._ready)

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._descriptor)


async def _every(seconds: float, action: Callable[[], object], what: str) -> None:
    """Run `action` again and again. Whatever goes wrong in one round is logged, and the next one comes."""
    while True:
        await asyncio.sleep(seconds)
        try:
            action()
        except Exception:
            log.exception("%s failed", what)


def _lock_state(path: Path, stack: contextlib.ExitStack) -> None:
    """Two daemons whose control sockets have one name in two directories would overwrite each other's state."""
    try:
        lock = Lock.take(path.with_name(path.name + ".lock"))
    except Held as held:
        raise SwitchError(
            f"cannot keep state in {path}: a running switchd does ({held.holder}); give this one another "
            "switch.state_dir, or its control.socket another name"
        ) from None
    except OSError:
        return  # a directory that cannot be written to: saving says so
    stack.callback(lock.release)


def _restore_affinity(cpus: frozenset[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)


def _make_server(app: Any) -> Any:
    """uvicorn on our loop and sockets, with our signal handling."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2,
            server_header=False,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
