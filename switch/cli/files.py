# SPDX-License-Identifier: Apache-2.0
"""Verbs about configuration files: validate, plan, diff, apply, confirm, rollback, save; and shell completion."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from switch.cli.entry import Verb, cli
from switch.cli.session import Session
from switch.cli.table import Cell, paint, table

FILE = click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
EXACT = click.option("--exact", is_flag=True, help="Also remove ports that were added at run time and are not in FILE.")
PENDING = 2


def _request(session: Session, file: str, **more: Any) -> dict[str, Any]:
    """A file for the daemon. On another machine its path means nothing: relative paths in it are then refused."""
    from switch.config.reading import MAX_BYTES, read_bytes

    path = Path.cwd() / "stdin" if file == "-" else Path(file)
    name = path.name if session.remote else str(path.absolute())
    try:
        text = sys.stdin.read() if file == "-" else read_bytes(path, MAX_BYTES).decode()
        return {"text": text, "path": name, **more}
    except UnicodeDecodeError:
        raise click.ClickException(f"{file} is not text in UTF-8") from None
    except OSError as error:
        raise click.ClickException(f"cannot read {file}: {error.strerror or error}") from None


@click.command(cls=Verb)
@FILE
@click.option(
    "--any-machine", is_flag=True, help="Do not check CPUs, groups and certificates: the file is for another machine."
)
@click.pass_obj
def validate(session: Session, file: str, any_machine: bool) -> None:
    """Check FILE. Needs no daemon. Every fault is shown with its place."""
    from switch.config import ANY_MACHINE, config_hash, load_config, parse_config

    machine = ANY_MACHINE if any_machine else None
    stdin = file == "-"
    config = parse_config(sys.stdin.read(), "stdin", Path.cwd(), machine) if stdin else load_config(file, machine)
    if config.control.tcp and not any_machine:
        from switch.api.credentials import load_credentials

        load_credentials(config.control.tcp)
    ports, bridges = len(config.ports), len(config.all_bridges())
    data = {"ports": ports, "bridges": bridges, "hash": config_hash(config)}
    session.answer(data, lambda: f"{file}: ok, {_count(ports, 'port')}, {_count(bridges, 'bridge')}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _notes(data: dict[str, Any]) -> list[str]:
    notes = [
        f"needs a restart of switchd: {change['key']} {change['running']} -> {change['wanted']}"
        for change in data["restart"]
    ]
    if data["kept"]:
        notes.append(f"stay, though the file does not name them (added at run time): {', '.join(data['kept'])}")
    return notes


def _pending(data: dict[str, Any]) -> None:
    if data["steps"] or data["restart"]:
        raise click.exceptions.Exit(PENDING)


@click.command(cls=Verb)
@FILE
@EXACT
@click.pass_obj
def plan(session: Session, file: str, exact: bool) -> None:
    """What `apply FILE` would do, step by step. Exit status 2 when there is something to do."""
    data = session.ask("POST", "/v1/config/plan", _request(session, file, exact=exact))

    def text() -> str:
        rows = [
            (number, Cell("disturbs", "yellow") if step["impact"] == "port" else "none", step["text"])
            for number, step in enumerate(data["steps"], 1)
        ]
        steps = table(("STEP>", "TRAFFIC", "WHAT"), rows) if rows else "nothing to change"
        return "\n".join([steps, *_notes(data)])

    session.answer(data, text)
    _pending(data)


_SIGNS = {"Add": ("+", "green"), "Del": ("-", "red"), "Set": ("~", "yellow"), "Rep": ("~", "yellow")}


@click.command(cls=Verb)
@FILE
@EXACT
@click.pass_obj
def diff(session: Session, file: str, exact: bool) -> None:
    """How FILE differs from what runs. Exit status 2 when it does."""
    data = session.ask("POST", "/v1/config/plan", _request(session, file, exact=exact))

    def text() -> str:
        lines = []
        for step in data["steps"]:
            sign, colour = ("+", "green") if step["step"] == "SetFlow" else _SIGNS[step["step"][:3]]
            lines.append(paint(f"{sign} {step['text'].split(' ', 1)[1]}", colour))
        return "\n".join([*lines, *_notes(data)]) or "no difference"

    session.answer(data, text)
    _pending(data)


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float:
    if value is None:
        return 0.0
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (value[:-1], value[-1]) if value[-1:] in units else (value, "s")
    if not number.isdecimal() or not int(number):
        raise click.BadParameter(f"{value!r} is not a duration, such as 60s or 5m")
    return float(int(number) * units[unit])


@click.command(cls=Verb)
@FILE
@EXACT
@click.option("--confirm", metavar="TIME", callback=_seconds, help="Undo it after TIME (60s, 5m) unless confirmed.")
@click.pass_obj
def apply(session: Session, file: str, exact: bool, confirm: float) -> None:
    """Make the switch be as FILE says: all of it, or nothing. Ports that do not change are not disturbed."""
    data = session.ask("POST", "/v1/config/apply", _request(session, file, exact=exact, confirm=confirm))

    def text() -> str:
        lines = [step["text"] for step in data["steps"]] or ["nothing to change"]
        lines += _notes(data)
        if confirm:
            lines.append(f"run `swctl confirm` within {confirm:g} s, or it is undone")
        return "\n".join(lines)

    session.answer(data, text)


@click.command(cls=Verb)
@click.pass_obj
def confirm(session: Session) -> None:
    """Keep what `apply --confirm` did."""
    session.answer(session.ask("POST", "/v1/config/confirm"), lambda: "")


@click.command(cls=Verb)
@click.pass_obj
def rollback(session: Session) -> None:
    """Go back to what ran before the last apply."""
    data = session.ask("POST", "/v1/config/rollback")
    session.answer(data, lambda: "\n".join(step["text"] for step in data["steps"]) or "nothing to change")


@click.command(cls=Verb)
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.pass_obj
def save(session: Session, file: str | None) -> None:
    """Write what runs, run-time changes included, as a configuration file; `-`: to standard output.

    Without FILE: to the file that switchd was started with. An old file is kept as FILE.old.
    """
    if session.remote and file is None:
        raise click.UsageError("name a FILE: the one that switchd was started with is on another machine")
    data = session.ask("GET", "/v1/config")
    if file == "-":
        session.answer({"file": "-", "hash": data["hash"], "yaml": data["yaml"]}, lambda: data["yaml"].rstrip("\n"))
        return
    path = Path(file or data["file"])
    answer = {"file": str(path), "hash": data["hash"]}
    try:
        changed = _replace(path, data["yaml"].encode())
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from None
    if not changed:
        session.answer(answer, lambda: f"{path} says so already")
        return
    session.answer(answer, lambda: f"written to {path}")


def _replace(path: Path, text: bytes) -> bool:
    """Put `text` into a file of which a reader sees the old or the new whole; the old one stays beside it. False when
    it says so already: then FILE.old stays what a person wrote."""
    exists = path.exists()
    path = Path(os.path.realpath(path))  # a link goes on to lead there
    if exists and not path.is_file():
        raise OSError(errno.EINVAL, "it is there and is no file; name a file, or `-` for standard output")
    if exists and path.read_bytes() == text:
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if exists:
            found = path.stat()
            temporary.chmod(found.st_mode & 0o777)
            with contextlib.suppress(OSError):  # root may; for others it is theirs already
                os.chown(temporary, found.st_uid, found.st_gid)
            shutil.copy2(path, path.with_name(path.name + ".old"))
        else:
            temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion(session: Session, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: swctl completion bash > /etc/bash_completion.d/swctl
    zsh:  swctl completion zsh > "${fpath[1]}/_swctl"
    fish: swctl completion fish > ~/.config/fish/completions/swctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"no completion for {shell}")
    script = found(cli, {}, "swctl", "_SWCTL_COMPLETE")
    source = script.source_template % script.source_vars()
    session.answer({"shell": shell, "script": source}, lambda: source)


COMMANDS = {command.name: command for command in (validate, plan, diff, apply, confirm, rollback, save, completion)}
