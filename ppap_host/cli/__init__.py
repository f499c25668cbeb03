"""The command line ``ppap``. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from ppap_host.cli import (
    bench,
    calibrate,
    doctor,
    experts,
    harvest,
    plugin,
    rerun,
    run,
    search,
    shapes,
    tune,
    weights,
)
from ppap_host.cli import list as list_command
from ppap_host.cli.output import fail
from ppap_host.errors import PluginError, PpapError

COMMANDS = "ppap.commands"
"""Entry point group of commands that plugins add: name -> Typer application."""

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
app.command("calibrate")(calibrate.calibrate)
app.command("search")(search.search)
app.add_typer(experts.app, name="experts")
app.add_typer(bench.app, name="bench")
app.add_typer(shapes.app, name="shapes")
app.add_typer(plugin.app, name="plugin")


def _add_plugin_command(name: str, point: metadata.EntryPoint) -> None:
    """Adds a plugin's command, which is imported when it is called and not before."""

    def call(ctx: typer.Context) -> None:
        try:
            command: Any = point.load()
        except Exception as error:
            raise PluginError(
                f"The command {name!r} cannot be loaded: {error}.",
                remedy="Mend or reinstall its plugin; `ppap doctor` says more.",
            ) from error
        command(args=ctx.args, prog_name=f"ppap {name}")

    app.command(
        name,
        help=f"From the plugin {point.dist.name if point.dist else point.value}.",
        rich_help_panel="Commands of plugins",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(call)


for _point in metadata.entry_points(group=COMMANDS):
    _add_plugin_command(_point.name, _point)


def main() -> None:
    """Entry point of the command ``ppap``: errors become one line and an exit code."""
    debug = "--debug" in sys.argv
    try:
        # Before or behind the command: nobody remembers where a global option goes.
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        app(args=arguments, prog_name="ppap")
    except PpapError as error:
        if debug:
            raise
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
