"""Options that several commands share. One letter means one thing, whatever the command."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Annotated, Any

import typer

from ppap_host.cli import complete
from ppap_host.cli.checks import DTYPES
from ppap_host.files.errors import OptionError
from ppap_host.files.reading import Document

COMMON = "Common options"
GUIDES = "Each guide in detail"
MODEL = "Diffusion model"
SAMPLING = "Sampling"
MACHINE = "Machine"
RESULTS = "Results"

_VALUE = Document("value", OptionError, "Give a number, a text or JSON.")


def option(
    help: str,
    *names: str,
    panel: str = COMMON,
    metavar: str = "NUMBER",
    **settings: Any,
) -> Any:
    """An option: what it means, where help shows it, and what stands there for its value.

    Args:
        names: where there is a letter, or it is not called as its parameter is; of a flag always.
    """
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=help, **settings)


Checkpoint = Annotated[
    str | None, option("Weights of the backbone.", panel=MODEL, metavar="FILE|FOLDER|HUB-NAME")
]
Vae = Annotated[str | None, option(
    "Autoencoder of latent backbones that need one.", panel=MODEL, metavar="FOLDER|HUB-NAME",
)]  # fmt: skip
Upsampler = Annotated[
    str | None, option("Second stage of cascaded backbones.", panel=MODEL, metavar="FILE|FOLDER")
]
BackboneOption = Annotated[list[str] | None, option(
    "What else the backbone takes; repeatable.", panel=MODEL, metavar="KEY=VALUE",
)]  # fmt: skip
Sampler = Annotated[str | None, option(
    "ddim, dpm++, euler, unipc ... (`ppap list samplers`). [default: the backbone's]",
    panel=SAMPLING, metavar="NAME", autocompletion=complete.of("sampler"),
)]  # fmt: skip
Eta = Annotated[
    float | None,
    option("Stochasticity of ddim and dpm++, 0 to 1. [default: the backbone's]", panel=SAMPLING),
]
AsJson = Annotated[
    bool, option("Print the result as JSON on standard output.", "--json", panel=RESULTS)
]
OpenIt = Annotated[bool, option("Open the picture of the result.", "--open", panel=RESULTS)]


def backbone(told: str = "") -> Any:
    """--backbone, with a word on what it is where it is left out."""
    default = f" [default: {told}]" if told else ""
    return option(
        f"Diffusion model; see `ppap list backbones`.{default}", "--backbone", "-b", panel=MODEL,
        metavar="NAME", autocompletion=complete.of("backbone"),
    )  # fmt: skip


def device(told: str = "") -> Any:
    """--device."""
    return option(
        f"auto, cpu, cuda, cuda:1 or mps.{told}", panel=MACHINE, metavar="NAME",
        autocompletion=complete.among(("auto", "cpu", "cuda", "mps")),
    )  # fmt: skip


def dtype(what: str = "Number format of the networks", told: str = "") -> Any:
    """--dtype."""
    return option(
        f"{what}: float32, bfloat16 or float16.{told}", panel=MACHINE, metavar="FORMAT",
        autocompletion=complete.among(DTYPES),
    )  # fmt: skip


def out(help: str, metavar: str = "FOLDER", **settings: Any) -> Any:
    """--out; ``--out=~/there`` is no path that shells expand."""
    return option(
        help, "--out", "-o", metavar=metavar,
        callback=lambda path: path and type(path)(os.path.expanduser(path)), **settings,
    )  # fmt: skip


def num(help: str, **settings: Any) -> Any:
    """--num."""
    return option(help, "--num", "-n", **settings)


def cfg_interval() -> Any:
    """--cfg-interval."""
    return option(
        "Noise levels (log-SNR) at which --cfg holds. [default: the backbone's]", panel=MODEL,
        metavar="LOW:HIGH",
    )  # fmt: skip


def steps(help: str) -> Any:
    """--steps."""
    return option(help, metavar="NUMBER|SPACING")


def backbone_options(others: list[str] | None, **named: str | None) -> dict[str, str]:
    """What a backbone's factory is given besides its checkpoint.

    Args:
        named: those that have options of their own.

    Raises:
        OptionError: an entry of ``others`` is not KEY=VALUE.
    """
    options = {key: value for key, value in named.items() if value is not None}
    for key, value in _pairs("--backbone-option", others):
        name = key.replace("-", "_")
        if options.setdefault(name, value) != value:
            raise _twice("--backbone-option", key)
    return options


def values(option: str, given: list[str] | None) -> dict[str, Any]:
    """Arguments by name, read as JSON where they are that, and else as text.

    Raises:
        OptionError: an entry is not NAME=VALUE, or its value is more than a document may hold.
    """
    found: dict[str, Any] = {}
    for key, value in _pairs(option, given):
        try:
            found[key.replace("-", "_")] = _VALUE.values(value, f"{option} {key}")
        except OptionError as error:
            if not isinstance(error.__cause__, json.JSONDecodeError):
                raise
            found[key.replace("-", "_")] = value
    return found


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in given or []]
    for key, equals, value in pairs:
        if not (key and equals):
            raise OptionError(
                f"{option} {key + equals + value!r} has no value.", remedy="Give KEY=VALUE."
            )
        if [key for key, *_ in pairs].count(key) > 1:
            raise _twice(option, key)
    return [(key, value) for key, _, value in pairs]


def _twice(option: str, key: str) -> OptionError:
    return OptionError(f"{option} {key!r} is given twice.", remedy="Leave one of them out.")


def refuse_idle(context: typer.Context, names: Collection[str], where: str, remedy: str) -> None:
    """Refuses options that were given and can do nothing.

    Args:
        names: of their parameters.
        where: they do nothing.

    Raises:
        OptionError: one of them was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise OptionError(f"{parameter.opts[0]} does nothing {where}.", remedy=remedy)


def spacing(steps: str) -> int | str:
    """A number of steps as one, a spacing such as "ddim25" as it is."""
    return int(steps) if steps.isdecimal() and len(steps) < 10 else steps
