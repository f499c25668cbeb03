"""The command line ``ppap``. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any, NoReturn, TextIO

import typer

from ppap_host.cli import complete, doctor, experts, harvest, plugin, rerun, run, shapes, tune
from ppap_host.cli import list as list_command
from ppap_host.cli import weights as weights_command
from ppap_host.cli.help import GENERAL, Application, Command, Group, with_general_options
from ppap_host.cli.output import VOICE, clean, fail, in_one_line, remark, warn
from ppap_host.cli.surroundings import (
    INTERRUPTED,
    NOBODY_READS,
    NobodyReadsError,
    signals,
    streams,
)
from ppap_host.files.errors import (
    CheckpointWarning,
    DamageWarning,
    GuidanceWarning,
    OptionError,
    OutputError,
    PluginError,
    PluginWarning,
    PpapError,
)
from ppap_host.files.errors import UnknownNameError as _UnknownName
from ppap_host.files.words import typed
from ppap_host.plugins.containment import contained, in_a_line, warn_of
from ppap_host.plugins.entry_points import (
    KNOWN_COMMANDS,
    LEFT_OUT,
    NAME,
    OWN_COMMANDS,
    owner,
    plugin_commands,
)

_UsageError: Any = typer.BadParameter.__mro__[1]
"""What Typer raises for a command that cannot be understood; it has no public name."""


class PluginCommand(Command):
    """A plugin's command, which is imported when it is called and not before.

    Attributes:
        points: of those who claim it; none if it is known and not installed.
    """

    def __init__(self, name: str, points: list[metadata.EntryPoint]) -> None:
        super().__init__(
            name,
            help=f"From the plugin {' and '.join(map(owner, points))}.",
            hidden=not points,
            rich_help_panel="Commands of plugins",
        )
        self.points = points

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.loaded().make_context(info_name, args, parent, **extra)

    def loaded(self) -> Any:
        """The command itself.

        Raises:
            PluginError: it cannot be loaded, or several plugins claim it.
            UnknownNameError: it is not installed.
        """
        name = self.name
        if not self.points:
            raise _UnknownName(
                f"The command {name!r} is not installed.",
                remedy=f"Install it with `pip install {KNOWN_COMMANDS[str(name)]}`.",
            )
        if len(self.points) > 1:
            raise PluginError(
                f"The command {name!r} is claimed by {' and '.join(map(owner, self.points))}.",
                remedy=f"Uninstall one of them, or name one in the variable {LEFT_OUT}.",
            )
        (point,) = self.points
        try:
            with contained(draws=False) as conduct:
                found = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"The command {name!r} of {owner(point)} cannot be loaded: {in_a_line(error)}.",
                remedy="Mend or reinstall that plugin.",
            ) from error
        if not isinstance(found, typer.Typer):
            raise PluginError(
                f"The command {name!r} of {owner(point)} is a {type(found).__name__}.",
                remedy="Its entry point must name a Typer application: 'my_plugin.cli:app'.",
            )
        warn_of(conduct, f"The command {name!r} of {owner(point)}, when it is imported,")
        command = typer.main.get_command(found)
        # The whole command line has them once.
        of_completion = ("install_completion", "show_completion")
        command.params = [p for p in command.params if p.name not in of_completion]
        return with_general_options(command)


class Root(Group):
    """All commands: the host's, and those of the plugins that are installed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        with_general_options(self)
        found = plugin_commands()
        for name in [*found, *(name for name in KNOWN_COMMANDS if name not in found)]:
            group, _, member = name.rpartition(".")
            into: Any = self.commands.get(group) if group else self
            # `ppap doctor` tells of those that the host has itself.
            if name not in OWN_COMMANDS and NAME.fullmatch(name) and isinstance(into, Group):
                into.add_command(PluginCommand(member, found.get(name, [])))

    def invoke(self, ctx: Any) -> None:
        """Runs the command; what it returns is no exit code."""
        try:
            super().invoke(ctx)
        except KeyboardInterrupt:
            remark("Interrupted.", "yellow")
            raise typer.Exit(INTERRUPTED) from None


app = Application("Steer a trained diffusion model with any trained vision model.", cls=Root)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"ppap-host {metadata.version('ppap-host')}")
        raise typer.Exit
    return value


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, rich_help_panel=GENERAL,
            help="Show the version.",
        ),
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion", callback=complete.install, rich_help_panel=GENERAL,
            help="Let the current shell complete commands, options and names.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion", callback=complete.show, rich_help_panel=GENERAL,
            help="Show what --install-completion would install.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """The options of the command line itself."""
    context.with_resource(typed())


_MAKE, _TEACH, _LOOK = "Make images", "Teach experts", "Look around"
app.command("run", rich_help_panel=_MAKE)(run.run)
app.command("rerun", rich_help_panel=_MAKE)(rerun.rerun)
app.command("harvest", rich_help_panel=_TEACH)(harvest.harvest)
app.command("tune", rich_help_panel=_TEACH)(tune.tune)
app.add_typer(experts.app, name="experts", rich_help_panel=_TEACH)
app.command("list", rich_help_panel=_LOOK)(list_command.list_everything)
app.command("doctor", rich_help_panel=_LOOK)(doctor.doctor)
app.command("weights", rich_help_panel=_LOOK)(weights_command.weights)
app.add_typer(shapes.app, name="shapes", rich_help_panel=_LOOK)
app.add_typer(plugin.app, name="plugin", rich_help_panel=_LOOK)


# Errors


_NO_MEMORY = (
    "out of memory", "allocate memory", "cannot allocate", "bad_alloc", "not enough memory",
    "failed to map segment",
)  # fmt: skip


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: torch says it in a RuntimeError, an import in an ImportError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    kinds = (RuntimeError, ImportError, OSError, SystemError)
    return isinstance(error, kinds) and any(t in str(error).lower() for t in _NO_MEMORY)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    seen: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in seen:
        seen.append(now)
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def _explained(error: Exception) -> PpapError | None:
    """What to tell of an error; None if it is a mistake of the host itself."""
    short = next(filter(_is_out_of_memory, _causes(error)), None)
    if short is not None:
        return PpapError(
            f"There is not enough memory: {in_a_line(short)}.",
            remedy="Use a smaller --batch, --dtype bfloat16 on a graphics card, or a recipe that "
            "does not go back through the backbone, such as x0.",
        )
    if isinstance(error, PpapError):
        return error
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import OWN_CODE

    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        if str(frame.f_globals.get("__name__", "")).startswith(OWN_CODE):
            return OptionError(
                f"The code {frame.f_code.co_filename!r} fails (line {line}): {in_a_line(error)}.",
                remedy="Mend it; --debug shows the traceback.",
            )
    found = registry().blamed(error)
    if found is not None:
        label, where = found
        return PluginError(
            f"The plugin {label} fails ({where}): {in_a_line(error)}.",
            remedy="This is a fault of the plugin; tell its authors (--debug shows the traceback).",
        )
    if isinstance(error, OSError):
        name = f" ({error.filename!r})" if error.filename else ""
        return OutputError(
            f"The system refuses: {error.strerror or in_a_line(error)}{name}.",
            remedy="Mend that and give the command again; --debug shows where it came up.",
        )
    return None


def _misunderstood(error: Any) -> NoReturn:
    """Says in a line what Typer made of the arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        sys.exit(error.exit_code)
    ctx = getattr(error, "ctx", None)
    help_for = f"See `{ctx.command_path} --help`." if ctx is not None else ""
    told = PpapError(in_one_line(error.format_message()), remedy=help_for)
    if not told.message.endswith((".", "?", "!")):
        told.message += "."
    fail(told)


_OURS = (PluginWarning, DamageWarning, CheckpointWarning, GuidanceWarning)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows warnings in a line each."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = issubclass(category, _OURS)
        where = "" if ours else f" ({filename}, line {lineno})"
        if file is not None:
            shown(message, category, filename, lineno, file, line)
        else:
            warn(f"{message}{where}")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _trace(error: BaseException) -> None:
    """Shows where an error came up, in lines that steer no terminal."""
    for text in "".join(traceback.format_exception(error)).splitlines():
        sys.stderr.write(clean(text) + "\n")


def main() -> None:
    """Entry point of the command ``ppap``: errors become one line and an exit code."""
    VOICE.reset()
    arguments = sys.argv[1:]
    named = next((a for a in arguments if not a.startswith("-")), "")
    # What a plugin's command prints, with whatever it calls, is its result.
    with _plain_warnings(), streams(results_alone=named in OWN_COMMANDS), signals():
        code = _called(arguments)
    sys.exit(code)


def _called(arguments: list[str]) -> int:
    completing = "_PPAP_COMPLETE" in os.environ
    try:
        if completing:
            complete.prepare()
        command: Any = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="ppap", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:  # a question was answered by Ctrl-C, or by the end of the input
        remark("Interrupted.", "yellow")
        return INTERRUPTED
    except _UsageError as error:
        _misunderstood(error)
    except NobodyReadsError:
        return NOBODY_READS
    except Exception as error:
        if completing:  # somebody types: no place for an error
            return 1
        explained = _explained(error)
        if explained is None or VOICE.debug:
            _trace(error)
        if explained is not None:
            fail(explained)
        remark("This is a mistake of ppap itself; please report it with what is above.", "")
        return 1
