# SPDX-License-Identifier: Apache-2.0
"""The verb capture: the frames of a port while they pass."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from switch import capture as frames
from switch.capture import Captured
from switch.cli.entry import Verb, complete_port
from switch.cli.session import Session

Show = Callable[[Captured], None]


@click.command(cls=Verb)
@click.argument("name", metavar="PORT", shell_complete=complete_port)
@click.option("-w", "--write", metavar="FILE", help="Write pcapng to FILE, - for standard output, instead of lines.")
@click.option("--filter", "expression", metavar="EXPR", help="Only what tcpdump's filter EXPR lets through.")
@click.option("--drops", is_flag=True, help="Only frames that are dropped, with the reason.")
@click.option("--direction", type=click.Choice(["rx", "tx", "both"]), default="both", show_default=True,
              help="rx: what enters the switch.")  # fmt: skip
@click.option("-c", "--count", type=click.IntRange(1), help="Stop after so many frames (default: at Ctrl-C).")
@click.option("-s", "--snaplen", type=click.IntRange(14, 262_144), default=262_144, help="Bytes of each frame at most.")
@click.pass_obj
def capture(session: Session, name: str, write: str | None, expression: str | None, drops: bool, direction: str,
            count: int | None, snaplen: int) -> None:  # fmt: skip
    """Show the frames of PORT while they pass, until Ctrl-C.

    rx frames are shown as the peer gave them, tx frames as the peer gets them. A guest may leave checksums open and
    segments large. --drops shows what the switch's rules refuse at PORT and what found no room in the peer's ring;
    `swctl drops` counts the other reasons.
    """
    if session.json and (write or expression):
        raise click.UsageError("-o json is for frames as objects: without --write and --filter")
    if write == "-" and sys.stdout.isatty():
        raise click.UsageError("pcapng is not for a terminal: --write FILE, or a pipe behind --write -")
    tool = _tcpdump(expression, write, count) if expression is not None else None
    query = {"direction": direction, "drops": drops, "snaplen": snaplen, "count": None if tool else count}
    seen = missed = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(_shown(session, name, write, tool))
        try:
            for item in session.stream(f"/v1/ports/{name}/capture", **query):
                if "missed" in item:
                    missed = item["missed"]
                    continue
                show(Captured.from_dict(item))
                seen += 1
        except (KeyboardInterrupt, BrokenPipeError):
            pass
    if not session.json:
        click.echo(f"{seen} frames {'filtered' if tool else 'captured'}, {missed} missed", err=True)


@contextlib.contextmanager
def _shown(session: Session, port: str, write: str | None, tool: list[str] | None) -> Iterator[Show]:
    if tool:
        # Ctrl-C is for us: tcpdump ends, without an error, when there is nothing more to read.
        with subprocess.Popen(tool, stdin=subprocess.PIPE, process_group=0) as child:
            assert child.stdin is not None
            try:
                yield _writer(child.stdin, port)
            finally:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
        if child.returncode:
            raise click.ClickException(f"tcpdump ended with status {child.returncode}")
    elif write == "-":
        yield _writer(sys.stdout.buffer, port)
    elif write:
        try:
            with Path(write).open("wb") as file:
                yield _writer(file, port)
        except OSError as error:
            raise click.ClickException(f"cannot write {write}: {error.strerror}") from None
    else:
        yield _printer(session.json)


def _tcpdump(expression: str, write: str | None, count: int | None) -> list[str]:
    """The command that filters; ClickException when there is none or it does not take the expression."""
    program = shutil.which("tcpdump", path=None) or shutil.which("tcpdump", path="/usr/sbin:/sbin")
    if program is None:
        raise click.ClickException("--filter is tcpdump's work, and there is no tcpdump: apt-get install tcpdump")
    check = subprocess.run([program, "-d", "-y", "EN10MB", expression], capture_output=True, text=True, check=False)
    if check.returncode:
        said = (check.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("tcpdump: ")
        raise click.ClickException(f"--filter {expression!r}: {said}")
    command = [program, "-n", "-e", "-l", "-U", "-r", "-"]
    if count is not None:
        command += ["-c", str(count)]
    return [*command, *(["-w", write] if write else []), expression]


def _writer(sink: IO[bytes], port: str) -> Show:
    sink.write(frames.file_header(port))

    def write(frame: Captured) -> None:
        sink.write(frames.packet(frame))
        sink.flush()

    return write


def _printer(as_json: bool) -> Show:
    def show(frame: Captured) -> None:
        data: dict[str, Any] = frame.as_dict()
        click.echo(json.dumps(data) if as_json else frames.line(frame))
        sys.stdout.flush()

    return show


COMMANDS = {"capture": capture}
