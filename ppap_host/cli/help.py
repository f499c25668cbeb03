"""Help in panels, and the options that every command has.

Typer's own panels are drawn by Rich, whose import takes as long as all else that ``ppap --help``
does; these are drawn by hand, from what Typer knows of a command. Frames are for terminals that can
show them; a pipe gets headings.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ppap_host.cli.output import VOICE, clean, encodable
from ppap_host.cli.surroundings import working_folder_is_gone
from ppap_host.files.errors import OptionError, OutputError

GENERAL = "General"
"""The last panel of every command."""

_NARROWEST, _WIDEST = 50, 100
"""Columns of help, however narrow or wide the terminal is."""
_NAMES = 28
"""Columns that names take at most; what a longer one means begins on a line of its own."""
_HELP_NAMES = ["-h", "--help"]

F = TypeVar("F", bound=Callable[..., Any])


class Application(typer.Typer):
    """Commands that look and behave like the host's own; for those of plugins, too.

    Args:
        about: of a group of commands, in a line; "" for an application of one command.
    """

    def __init__(self, about: str = "", *, cls: type[TyperGroup] | None = None) -> None:
        super().__init__(
            cls=cls or Group,
            help=about or None,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            context_settings={"help_option_names": _HELP_NAMES},
        )
        if about:
            # With a callback, one command alone is a member of a group, too.
            self.callback()(_nothing)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """As :meth:`typer.Typer.command`."""
        return super().command(name, cls=Command, **settings)


def _nothing() -> None:
    """The callback of groups that have no options of their own."""


def _general(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", expose_value=False, rich_help_panel=GENERAL,
            callback=lambda given: VOICE.set("quiet", given),
            help="Say nothing but results, warnings and errors: no progress, no remarks.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", expose_value=False, rich_help_panel=GENERAL,
            callback=lambda given: VOICE.set("verbose", given),
            help="Say more: what was chosen and found, and how long each part took.",
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", expose_value=False, rich_help_panel=GENERAL, is_eager=True,
            callback=lambda given: VOICE.set("debug", given),
            help="Show tracebacks of errors.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Options that stand before or behind the command: nobody remembers where they go."""


@cache
def _general_options() -> tuple[Any, ...]:
    app = typer.Typer(add_completion=False)
    app.command()(_general)
    return tuple(typer.main.get_command(app).params)


def with_general_options(command: Any) -> Any:
    """The command, or group of commands, that takes the general options everywhere.

    An option of its own that has the same name stays its own.
    """
    taken = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    command.params += [p for p in _general_options() if not taken & {*p.opts}]
    for member in getattr(command, "commands", {}).values():
        with_general_options(member)
    return command


_PLACE = re.compile("^(?!.*LABEL).*(FILE|FOLDER)")
"""What stands for a value that is a path, or may be one."""


class Command(TyperCommand):
    """A command whose help is in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments; an empty path, as of a variable that is not set, is none."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            value = given.get(param.name)
            if param.param_type_name == "option" and isinstance(value, list):
                continue  # one for each guide, where an empty one keeps a place
            if "" in (value if isinstance(value, list | tuple) else [value]) and _PLACE.search(
                str(getattr(param, "metavar", ""))
            ):
                raise OptionError(
                    f"{param.opts[0] if param.param_type_name == 'option' else _value(param)} is "
                    "empty.",
                    remedy="Give a path or a name; the folder you stand in is written as a dot.",
                )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs it, unless what it was started in is gone."""
        if self.name != "list" and working_folder_is_gone():
            # Not only would no relative path mean anything: libraries end the process.
            raise OutputError(
                "The folder that this was started in has been removed.",
                remedy="Go to a folder that is there, with cd, and give the command again.",
            )
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_text(self, ctx))


class Group(TyperGroup):
    """A group of commands whose help is in panels."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_text(self, ctx))


# Panels


def _text(command: Any, ctx: Any) -> str:
    """The help of a command."""
    width = max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))
    framed = sys.stdout.isatty() and encodable("╭─│╰╮╯", sys.stdout)
    panels = _panels(command, ctx)
    names = (len(name) for rows in panels.values() for name, _ in rows)
    first = max((length for length in names if length <= _NAMES), default=_NAMES) + 2
    parts = [_usage(command, ctx, width), _about(command.help or "", width)]
    parts += [_panel(title, rows, first, width, framed) for title, rows in panels.items()]
    return "\n".join(filter(None, parts))


def _usage(command: Any, ctx: Any, width: int) -> str:
    pieces = ["[OPTIONS]"]
    for param in command.get_params(ctx):
        if param.param_type_name == "argument":
            pieces.append(_value(param) if param.required else f"[{_value(param)}]")
    if isinstance(command, TyperGroup):
        pieces.append("COMMAND ...")
    start = f"Usage: {ctx.command_path} "
    lines = textwrap.wrap(" ".join(pieces), max(width - len(start), 20), **_WHOLE)
    return textwrap.indent("\n".join(lines), " " * len(start)).replace(" " * len(start), start, 1)


_WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
"""An option, a path and a name stay in one piece."""


def paragraphs(told: str) -> list[tuple[bool, str]]:
    """A docstring's paragraphs in one line each, and whether each is a command to be typed."""
    found = [" ".join(part.split()) for part in inspect.cleandoc(told).split("\n\n")]
    shown = ("ppap ", "torchrun ")
    return [(part.startswith(shown) and not part.endswith("."), part) for part in found if part]


def _about(told: str, width: int) -> str:
    lines: list[str] = []
    for is_command, part in paragraphs(told):
        room = width - 4 if not is_command else width - 8
        wrapped = textwrap.wrap(clean(part), room, **_WHOLE)
        if is_command:
            # Continued, so that it can be copied as it stands.
            wrapped = [f"  {line} \\" for line in wrapped[:-1]] + [f"  {wrapped[-1]}"]
            wrapped[1:] = [f"  {line}" for line in wrapped[1:]]
        lines += ["", *(f"  {line}" for line in wrapped)]
    return "\n".join([*lines, ""]) if lines else ""


def _panels(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Title -> (names, meaning) of arguments, options and commands, in the order declared."""
    found: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        is_option = param.param_type_name == "option"
        usual = ("Options" if "--help" not in param.opts else GENERAL) if is_option else "Arguments"
        panel = getattr(param, "rich_help_panel", None) or usual
        found.setdefault(panel, []).append((_names(param), _in_words(record[1])))
    general = found.pop(GENERAL, [])
    for name in command.list_commands(ctx) if isinstance(command, TyperGroup) else []:
        member = command.get_command(ctx, name)
        if member is not None and not member.hidden:
            panel = getattr(member, "rich_help_panel", None) or "Commands"
            told = paragraphs(member.help or "")
            found.setdefault(panel, []).append((name, told[0][1] if told else ""))
    return found | ({GENERAL: general} if general else {})


def _in_words(told: str) -> str:
    """What Typer says of a number's range, as people do."""
    told = re.sub(r"([\w.-]+)<=x<=([\w.-]+)", r"\1 to \2", told)
    return re.sub(r"\bx([<>])=([\w.-]+)", lambda m: f"at {_BOUND[m[1]]} {m[2]}", told)


_BOUND = {">": "least", "<": "most"}


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return _value(param)
    both = [*sorted(param.opts, key=len), *param.secondary_opts]
    return ", ".join(both) + ("" if param.is_flag else f" {_value(param)}")


def _value(param: Any) -> str:
    """What stands for a value."""
    return str(param.metavar or param.name.upper())


def _panel(
    title: str, rows: Sequence[tuple[str, str]], first: int, width: int, framed: bool
) -> str:
    """A panel.

    Args:
        first: columns from its edge to what the names mean.
    """
    inner = width - 4 if framed else width - 2
    lines = list(_rows(rows, first, inner))
    if not framed:
        return "\n".join([f"{title}:", *(f"  {line}" for line in lines), ""])
    top = f"╭─ {typer.style(title, bold=True)} {'─' * (width - len(title) - 5)}╮"
    body = [f"│ {line:{inner}} │" for line in lines]
    return "\n".join([top, *body, f"╰{'─' * (width - 2)}╯"])


def _rows(rows: Iterable[tuple[str, str]], first: int, width: int) -> Iterator[str]:
    for name, told in rows:
        lines = textwrap.wrap(clean(" ".join(told.split())), width - first, **_WHOLE) or [""]
        if len(name) > first - 2:
            yield clean(name)
        else:
            lines[0] = f"{clean(name):{first}}{lines[0]}"
            yield lines.pop(0).rstrip()
        yield from (f"{'':{first}}{line}".rstrip() for line in lines)
