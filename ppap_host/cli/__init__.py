"""The command line ``ppap``. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from importlib import metadata
from typing import Annotated, Any, TextIO

import typer

from ppap_host.cli import doctor, experts, harvest, plugin, rerun, run, shapes, tune, weights
from ppap_host.cli import list as list_command
from ppap_host.cli.output import fail, for_results_alone, show_warning
from ppap_host.files.errors import (
    CheckpointWarning,
    DamageWarning,
    PluginError,
    PluginWarning,
    PpapError,
    UnknownNameError,
)
from ppap_host.plugins.containment import contained, in_a_line, warn_of
from ppap_host.plugins.entry_points import (
    KNOWN_COMMANDS,
    LEFT_OUT,
    NAME,
    OWN_COMMANDS,
    owner,
    plugin_commands,
)

app = typer.Typer(
    name="ppap",
    help="Steer a trained diffusion model with any trained vision model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: importing what Rich needs for pretty help takes longer than all the rest.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> bool:
    if value:
        print(f"ppap-host {metadata.version('ppap-host')}")
        raise typer.Exit
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Steer a trained diffusion model with any trained vision model."""


app.command("run")(run.run)
app.command("rerun")(rerun.rerun)
app.command("list")(list_command.list_everything)
app.command("doctor")(doctor.doctor)
app.command("weights")(weights.weights)
app.command("harvest")(harvest.harvest)
app.command("tune")(tune.tune)
GROUPS = {"experts": experts.app, "shapes": shapes.app, "plugin": plugin.app}
"""Commands that have commands of their own; plugins may add to them, as ``shapes.evaluate``."""
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)


def _add_plugin_command(
    name: str, points: list[metadata.EntryPoint], into: typer.Typer = app, group: str = ""
) -> None:
    """Adds a plugin's command, which is imported when it is called and not before."""

    def call(ctx: typer.Context) -> None:
        if len(points) > 1:
            raise PluginError(
                f"The command {name!r} is claimed by {' and '.join(map(owner, points))}.",
                remedy=f"Uninstall one of them, or name one in the variable {LEFT_OUT}.",
            )
        (point,) = points
        try:
            with contained(draws=False) as conduct:
                command: Any = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"The command {name!r} of {owner(point)} cannot be loaded: {in_a_line(error)}.",
                remedy="Mend or reinstall that plugin.",
            ) from error
        if not callable(command):
            raise PluginError(
                f"The command {name!r} of {owner(point)} is a {type(command).__name__}.",
                remedy="Its entry point must name a Typer application: 'my_plugin.cli:app'.",
            )
        warn_of(conduct, f"The command {name!r} of {owner(point)}, when it is imported,")
        command(args=ctx.args, prog_name=f"ppap {group}{name}")

    into.command(
        name,
        help=f"From the plugin {' and '.join(map(owner, points))}.",
        rich_help_panel="Commands of plugins",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(call)


def _add_missing_command(name: str, distribution: str) -> None:
    """Adds a command that says how to install it."""

    def call() -> None:
        raise UnknownNameError(
            f"The command {name!r} is not installed.",
            remedy=f"Install it with `pip install {distribution}`.",
        )

    everything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(name, hidden=True, add_help_option=False, context_settings=everything)(call)


def _add_commands_of_plugins() -> None:
    found = plugin_commands()
    for name, points in found.items():
        group, _, member = name.rpartition(".")
        # `ppap doctor` tells of those that the host has itself.
        if name in OWN_COMMANDS or not NAME.fullmatch(name):
            continue
        if group in GROUPS:
            _add_plugin_command(member, points, GROUPS[group], f"{group} ")
        elif not group:
            _add_plugin_command(name, points)
    for name, distribution in KNOWN_COMMANDS.items():
        if name not in found:
            _add_missing_command(name, distribution)


_add_commands_of_plugins()


def _blamed(error: Exception) -> PpapError | None:
    """The error as the machine's, or that of the plugin in whose code it came up; else None."""
    from ppap_host.plugins.registry import registry

    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return PpapError(
            f"There is not enough memory: {in_a_line(error)}.",
            remedy="Use a smaller --batch, --dtype bfloat16 on a graphics card, or a recipe that "
            "does not go back through the backbone, such as x0.",
        )
    found = registry().blamed(error)
    if found is None:
        return None
    label, where = found
    return PluginError(
        f"The plugin {label} fails ({where}): {in_a_line(error)}.",
        remedy="This is a fault of the plugin; tell its authors (--debug shows the traceback).",
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings of our own on one line; all others as ever."""
    if issubclass(category, PluginWarning | DamageWarning | CheckpointWarning):
        show_warning(str(message))
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning


def main() -> None:
    """Entry point of the command ``ppap``: errors become one line and an exit code."""
    debug = "--debug" in sys.argv
    warnings.showwarning = _show_warning
    try:
        # Before or behind the command: nobody remembers where a global option goes.
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        # What a plugin's command prints, with whatever it calls, is its result.
        named = next((a for a in arguments if not a.startswith("-")), "")
        with for_results_alone() if named in OWN_COMMANDS else nullcontext():
            app(args=arguments, prog_name="ppap")
    except PpapError as error:
        if debug:
            raise
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        blamed = None if debug else _blamed(error)
        if blamed is None:
            raise
        fail(blamed)
    finally:
        warnings.showwarning = _python_shows
