# SPDX-License-Identifier: Apache-2.0
"""The command `swctl`: its verbs, the options that each of them takes, and how errors end it.

Exit status: 0 done, 1 error, 2 changes are pending (`plan` and `diff` only).
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from switch.cli.session import DEFAULT_CONTROL, Refused, Session, port_names
from switch.errors import ConfigError, SwitchError

# Where each verb lives: imported when it is used.
VERBS = {
    "show": "look",
    "ports": "look",
    "port": "look",
    "drops": "look",
    "stats": "look",
    "workers": "look",
    "queues": "look",
    "explain": "look",
    "capture": "capture",
    "top": "watch",
    "events": "watch",
    "history": "watch",
    "log": "watch",
    "add-port": "change",
    "set-port": "change",
    "del-port": "change",
    "fdb": "fdb",
    "validate": "files",
    "plan": "files",
    "diff": "files",
    "apply": "files",
    "confirm": "files",
    "rollback": "files",
    "save": "files",
    "completion": "files",
}


def _set_control(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).control = value


def _set_identity(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        assert parameter.name
        context.ensure_object(Session).identity[parameter.name] = value


def _set_output(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).json = value == "json"


def _say_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"swctl {metadata.version('switchd')}")
        except metadata.PackageNotFoundError:
            click.echo("swctl, run without being installed")
        context.exit()


_IDENTITY = (
    ("--token-file", "Over https: the file with our token (default: $SWITCH_TOKEN_FILE)."),
    ("--cacert", "Over https: the CA of the daemon's certificate (default: $SWITCH_CACERT, or the system's)."),
    ("--cert", "Over https: our certificate, if it wants one (default: $SWITCH_CERT)."),
    ("--key", "Over https: the key of our certificate (default: $SWITCH_KEY, or in the same file)."),
)


def common_options(hidden: bool = False) -> list[click.Parameter]:
    """Accepted before and after the verb. `hidden`: what few need is not in the help of every verb."""
    return [
        click.Option(
            ["--control"], metavar="SOCKET", expose_value=False, is_eager=True, callback=_set_control,
            help="The daemon: its control socket, or https://HOST:PORT "
            f"(default: $SWITCH_CONTROL or {DEFAULT_CONTROL}).",
        ),
        *(
            click.Option(
                [name], metavar="FILE", expose_value=False, is_eager=True, callback=_set_identity, help=text,
                hidden=hidden,
            )
            for name, text in _IDENTITY
        ),
        click.Option(
            ["-o", "--output"], type=click.Choice(["table", "json"]), expose_value=False, is_eager=True,
            callback=_set_output, help="For people, or for programs (default: table).",
        ),
    ]  # fmt: skip


class Verb(click.Command):
    """A command that takes the common options too."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params += common_options(hidden=True)


class Verbs(click.Group):
    """A group of verbs, loaded when they are used, with a hint for mistyped ones."""

    command_class = Verb

    def __init__(self, *arguments: Any, lazy: dict[str, str] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._lazy = lazy or {}
        self.params += common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._lazy:
            import importlib

            module = importlib.import_module(f"switch.cli.{self._lazy[cmd_name]}")
            command: click.Command = module.COMMANDS[cmd_name]
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no verb {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs, lazy=VERBS, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_say_version, help="Show the version."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Control a running switchd.

    \b
    swctl show                                    everything on one screen
    swctl port vm1                                why does vm1 not work
    swctl add-port vhostuser vm1 --socket /run/switch/vm1.sock --vlan-access 10
    swctl drops                                   where frames are lost, and why
    swctl plan switch.yaml && swctl apply switch.yaml
    """
    context.ensure_object(Session)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(1)


def complete_port(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of the ports of the daemon that runs."""
    session = context.find_object(Session) or Session()
    return [name for name in port_names(session) if name.startswith(incomplete)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Errors go to stderr in a line or two; with `-o json` the error object goes to stdout as well."""
    session = Session()
    try:
        result = cli.main(arguments and list(arguments), prog_name="swctl", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "swctl"
        return _fail(session, error.format_message(), f"see `{usage} --help`", {"kind": "usage"})
    except click.ClickException as error:
        return _fail(session, error.format_message(), "", {"kind": "usage"})
    except Refused as error:
        faults = error.body.get("faults") or []
        lines = [_fault_line(fault) for fault in faults] if faults else [str(error)]
        return _fail(session, "\n".join(lines), "", dict(error.body), plain=bool(faults))
    except ConfigError as error:
        fields = ("path", "reason", "file", "line", "column")
        body = {"kind": "config", "faults": [{name: getattr(fault, name) for name in fields} for fault in error.faults]}
        return _fail(session, str(error), "", body, plain=True)
    except SwitchError as error:
        return _fail(session, str(error), "", {"kind": "control"})
    except KeyError as error:
        # After an upgrade the old daemon goes on until it is restarted: its answers lack what this swctl shows.
        return _fail(
            session,
            f"the answer of switchd at {session.control} has no {error}: it is of another version than this swctl; "
            "restart the daemon, or use the swctl that came with it",
            "",
            {"kind": "control"},
        )
    except UnicodeEncodeError as error:
        return _fail(session, f"{error.object!r} is not text in UTF-8", "", {"kind": "usage"})
    except BrokenPipeError:
        # The reader left (`swctl ports | head`): nothing more to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(session, f"{name}{error.strerror or error}", "", {"kind": "file"})
    except (click.Abort, KeyboardInterrupt):
        return 130


def _fault_line(fault: dict[str, Any]) -> str:
    place = f"{fault['file']}:{fault['line']}:{fault['column']}: " if fault.get("line") else ""
    return f"{place}{fault['path']}: {fault['reason']}" if fault.get("path") else f"{place}{fault['reason']}"


def _fail(session: Session, message: str, hint: str, body: dict[str, Any], plain: bool = False) -> int:
    tail = f"; {hint}" if hint else ""
    click.echo(message if plain else f"swctl: {message}{tail}", err=True)
    if session.json:
        click.echo(json.dumps({"error": {"message": message, "faults": [], **body}}, indent=2))
    return 1
