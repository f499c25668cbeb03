"""Writes what the documentation takes from the code: ``python docs/generate.py``.

What is generated stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything else
on a page is written by hand. A command has a page in ``docs/commands``, where its options go
between ``<!-- generated: command NAME -->`` and ``<!-- end -->``. A new command gets its place on a
page, and a page if it has none.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import typer
from typer.models import ArgumentInfo, OptionInfo

from ppap_host import cli
from ppap_host.guides.familiarity import FILE, load_familiarity
from ppap_host.plugins import builtin
from ppap_host.plugins.entry_points import KNOWN_COMMANDS, owner, plugin_commands
from ppap_host.recipes.recipe import Parameter as RecipeParameter
from ppap_host.recipes.recipe import Recipe, parts_of
from ppap_host.sampling.names import DIFFUSERS, NO_SAMPLERS
from ppap_host.testing import backbones, guides
from ppap_host.testing import recipes as testing_recipes

DOCS = Path(__file__).parent

_PLACE = re.compile(r"(<!-- generated: ([\w ]+) -->)\n.*?<!-- end -->", re.DOTALL)

_VALUES = {str: "text", int: "whole number", float: "number", Path: "path", bool: "flag"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as the code declares it.

    Attributes:
        name: as it is typed, such as "experts show".
        about: its docstring.
        callback: the function behind it; None of a group, which only has commands.
        commands: those of a group.
    """

    name: str
    about: str
    callback: Callable[..., Any] | None
    commands: tuple[Command, ...] = ()

    @property
    def summary(self) -> str:
        """The first paragraph of what it says of itself."""
        return _prose(self.about.partition("\n\n")[0])


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An option or an argument of a command.

    Attributes:
        names: an option's, the long one first; empty of an argument.
        metavar: what stands for its value in the usage of the command.
        values: what it takes, in words.
        default: in Markdown; empty if there is none.
        required: whether it must be given.
        meaning: in Markdown.
    """

    names: tuple[str, ...]
    metavar: str
    values: str
    default: str
    required: bool
    meaning: str


def commands(app: typer.Typer = cli.app) -> Iterator[Command]:
    """The commands of the host and of the project's own plugins; others may not be installed."""
    added = {
        name: point.load()
        for name, (point, *_) in plugin_commands().items()
        if owner(point) in KNOWN_COMMANDS.values()
    }
    for command in app.registered_commands:
        yield _command(command.name or "", command.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        whole = _group(str(group.name), group.typer_instance)
        members = tuple(
            _command(name.replace(".", " "), its.registered_commands[0].callback)
            for name, its in added.items()
            if name.startswith(f"{group.name}.")
        )
        yield dataclasses.replace(whole, commands=whole.commands + members)
    for name, its in added.items():
        if its.registered_callback:
            yield _group(name, its)
        elif "." not in name:
            yield _command(name, its.registered_commands[0].callback)


def _command(name: str, callback: Callable[..., Any] | None) -> Command:
    return Command(name, inspect.getdoc(callback) or "", callback)


def _group(name: str, app: typer.Typer) -> Command:
    parts = []
    for command in app.registered_commands:
        assert command.callback is not None
        own = command.name or command.callback.__name__.replace("_", "-")
        parts.append(_command(f"{name} {own}", command.callback))
    return Command(name, app.info.help or "", None, tuple(parts))


def parameters(callback: Callable[..., Any]) -> Iterator[Parameter]:
    """What a command takes, read from the signature of its function as Typer reads it."""
    hints = typing.get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        if hints[name] is typer.Context:  # Typer gives it itself
            continue
        kind, *notes = typing.get_args(hints[name])
        (info,) = (note for note in notes if isinstance(note, ArgumentInfo | OptionInfo))
        # In an annotation the first name takes the place that a default has elsewhere.
        declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
        names = tuple(declared) or (f"--{name.replace('_', '-')}",)
        meaning, told = _without_default(info.help or "")
        if isinstance(info.show_default, str):
            told = _default(info.show_default)
        elif not any(parameter.default is none for none in (None, False, parameter.empty, "")):
            value = parameter.default
            told = f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
        yield Parameter(
            names=() if isinstance(info, ArgumentInfo) else names,
            metavar=(info.metavar or name).upper() + "..." * _is_list(kind, info.metavar),
            values=_values(kind, info),
            default=told,
            required=parameter.default is parameter.empty,
            meaning=_prose(meaning),
        )


def _is_list(kind: Any, metavar: str | None = None) -> bool:
    """Whether there may be several; not again where the metavar says so already."""
    lists = typing.get_origin(kind) is list or any(map(_is_list, typing.get_args(kind)))
    return lists and not (metavar or "").endswith("...")


def _values(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    """What a parameter takes, in words."""
    options = [part for part in typing.get_args(kind) if part is not type(None)]
    plain = options[0] if options else kind
    if typing.get_origin(plain) is list:
        (plain,) = typing.get_args(plain)
    words = _VALUES.get(plain, "a number")  # with a parser of its own
    if isinstance(info, OptionInfo) and info.metavar not in (None, "NUMBER", "TEXT"):
        words = "`" + str(info.metavar).replace("|", "\\|") + "`"
    if info.min is not None and info.max is not None:
        words += f", {info.min:g} to {info.max:g}"
    elif info.min is not None:
        words += f", at least {info.min:g}"
    elif info.max is not None:
        words += f", at most {info.max:g}"
    return f"{words}; repeatable" if _is_list(kind) else words


def _without_default(told: str) -> tuple[str, str]:
    """A help text without what it says of the default, and that."""
    found = re.fullmatch(
        r"(?P<meaning>.+?)(?: \[default: (?P<inner>.+)\]|[;,] default: (?P<end>[^;]+)\.)", told
    )
    if found is None:
        return told, ""
    return found["meaning"].rstrip(".") + ".", _default(found["inner"] or found["end"])


def _default(told: str) -> str:
    """A default that the help names: a value as code, words as they are."""
    return f"`{told}`" if " " not in told and told != "all" else _prose(told)


def _prose(told: str) -> str:
    """A help text as Markdown: options as code, nothing that Markdown takes for markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(told.split()))
    for i, part in enumerate(parts[::2]):
        text = re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", part)
        parts[2 * i] = text.replace("<", "&lt;").replace("*", "\\*").replace("|", "\\|")
    return "".join(parts)


def command_reference(name: str) -> str:
    """What a command does, how it is called, and what it takes."""
    command = COMMANDS[name]
    lines = [command.summary, ""]
    about = _paragraphs(command.about.split("\n\n")[1:])
    if command.callback is None:
        return "\n".join([*lines, *about, _table(command.commands)])
    told = list(parameters(command.callback))
    arguments = [parameter for parameter in told if not parameter.names]
    options = [parameter for parameter in told if parameter.names]
    usage = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
    lines += ["```text", " ".join([f"ppap {name}", *usage, "[OPTIONS]"]), "```", ""]
    lines += about
    if arguments:
        lines += ["| argument | takes | meaning |", "|---|---|---|"]
        lines += [
            f"| `{p.metavar.replace('|', chr(92) + '|')}` | {p.values} | {p.meaning} |"
            for p in arguments
        ]
        lines.append("")
    lines += ["| option | takes | default | meaning |", "|---|---|---|---|"]
    for option in options:
        # "--yes/--no" are two sides of one flag, not two names.
        names = ", ".join(f"`{name.replace('/', '` / `')}`" for name in option.names)
        default = "**required**" if option.required else option.default
        lines.append(f"| {names} | {option.values} | {default} | {option.meaning} |")
    lines.append("| `--help`, `-h` | flag |  | Show this message and exit. |")
    return "\n".join(lines)


def _paragraphs(told: list[str]) -> list[str]:
    """Paragraphs of a docstring as lines of Markdown; commands stand by themselves."""
    lines = []
    for paragraph in told:
        if re.match(r"(ppap|torchrun) ", paragraph) and not paragraph.endswith("."):
            lines += ["```text", paragraph, "```", ""]
        else:
            lines += [_prose(paragraph), ""]
    return lines


def _table(listed: typing.Iterable[Command]) -> str:
    """Commands with their summaries, each linked to where it is described."""
    rows = []
    for command in listed:
        page, _, part = command.name.partition(" ")
        link = f"#ppap-{page}-{part}" if part else f"{page}.md"
        rows.append(f"| [`ppap {command.name}`]({link}) | {command.summary} |")
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def command_table() -> str:
    """All commands of the host."""
    return _table(command for command in COMMANDS.values() if " " not in command.name)


def module_tables() -> str:
    """The pages of modules, in the order and the groups of the site's navigation."""
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    lines: list[str] = []
    title = ""
    for name, page in re.findall(r"^ +- (.+?):(?: (\S+))?$", navigation, re.MULTILINE):
        if not page:
            title = name
        elif page.startswith("reference/"):
            if title:
                lines += ["", f"## {title}", "", "| page | modules | what it is for |"]
                lines.append("|---|---|---|")
                title = ""
            lines.append(_module_row(name, DOCS / page))
    return "\n".join(lines).strip()


def _module_row(title: str, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    found = list(dict.fromkeys(re.findall(r"^::: (ppap_host[\w.]*)$", text, re.MULTILINE)))
    # What lies in a module that is there itself is a part of the page, not a module.
    modules = [name for name in found if name.rpartition(".")[0] not in found]
    named = "<br>".join(f"`{name}`" for name in modules)
    about = text.split("\n\n")[1]
    return f"| [{title}]({path.name}) | {named} | {about.partition('. ')[0].rstrip('.')}. |"


def _part(part: object) -> str:
    """A recipe's part as its constructor is written, without what is left at its default."""
    if not dataclasses.is_dataclass(part):
        return f"`{type(part).__name__}`"
    given = [
        f"{f.name}={getattr(part, f.name)!r}"
        for f in dataclasses.fields(part)
        if getattr(part, f.name) != f.default
    ]
    return f"`{type(part).__name__}({', '.join(given)})`"


def _experts(recipe: Recipe) -> str:
    if recipe.needs_experts:
        return "needed"
    if recipe.guideless:
        return "–"
    return "if named"


def _guide(recipe: Recipe) -> str:
    """What is done to the guide itself."""
    if recipe.guideless:
        return "none"
    told = [] if recipe.moves or recipe.start else ["by values alone"]
    if math.isfinite(recipe.softplus):
        told.append(f"Softplus({recipe.softplus:g})")
    if (recipe.joint, recipe.marginal) != (1, 1):
        told.append(f"temperatures {recipe.joint:g}, {recipe.marginal:g}")
    return "; ".join(told) or "as it is"


def _setting(recipe: Recipe, parameter: RecipeParameter) -> str:
    value = dataclasses.replace(recipe, absolute=True).value(parameter.name)
    shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    shown = f"{shown:g}" if isinstance(shown, float) else shown
    return f"`{parameter.name}={shown}`"


def _moved(measured: dict[str, float] | None) -> str:
    if measured is None:
        return "not measured"
    return f"{measured['mean']:.2g} on average, {measured['most']} at most"


def recipe_tables() -> str:
    """The named recipes with their parts, and what the parts are."""
    entries = [(entry, entry.load()) for entry in builtin.ppap_recipes()]
    lines = ["| recipe | what it is |", "|---|---|"]
    lines += [f"| `{entry.name}` | {entry.summary} |" for entry, _ in entries]
    lines += ["", "They consist of these parts. A recipe with two rows does two things:", ""]
    lines += [
        "| recipe | view | energy | gradient | ascent | place or selection | strength |",
        "|---|---|---|---|---|---|---|",
    ]
    used: dict[str, type] = {}
    for _, recipe in entries:
        if recipe.selection is not None and not recipe.moves:
            shown = [_part(recipe.view), _part(recipe.energy), *["–"] * 3, _part(recipe.selection)]
            used |= {type(p).__name__: type(p) for p in (recipe.view, recipe.selection)}
            lines.append(" | ".join([f"| `{recipe.name}`", *shown, "–"]) + " |")
        for number, move in enumerate(recipe.moves):
            used |= {type(part).__name__: type(part) for part in parts_of(move)}
            gradient = ", ".join(_part(p) for p in move.gradient) or "as it is"
            parts = (move.view, move.energy, gradient, move.ascent, move.place, move.strength)
            cells = [part if isinstance(part, str) else _part(part) for part in parts]
            lines.append(
                " | ".join([f"| `{recipe.name}`" if not number else "| and", *cells]) + " |"
            )
        if recipe.selection is not None and recipe.moves:
            lines.append(" | ".join(["| and", *["–"] * 4, _part(recipe.selection), "–"]) + " |")
    lines += [
        "",
        "And these settings, which `--recipe NAME:SETTING=VALUE,...` changes:",
        "",
        "| recipe | the guide | evaluations a step | needs | experts | settings "
        "| in another batch |",
        "|---|---|---:|---|---|---|---|",
    ]
    batches = json.loads((DOCS / "results" / "batches.json").read_text("utf-8"))
    for _, recipe in entries:
        needs = {
            "": "–", "noise": "a sampler with noise",
            "gaussian": "`ddpm`, or `ddim` and `dpm++` with eta",
        }  # fmt: skip
        own = ", ".join(_setting(recipe, p) for p in recipe.parameters) or "none of its own"
        lines.append(
            f"| `{recipe.name}` | {_guide(recipe)} | {recipe.evaluations} | {needs[recipe.needs]} "
            f"| {_experts(recipe)} | {own} | {_moved(batches['recipes'].get(recipe.name))} |"
        )
    lines += [
        "",
        f"The last column is how far an image is from itself when {batches['images']} are made at "
        f"once and not one by one, over {batches['steps']} steps of the built-in backbone on one "
        "machine (`python docs/batches.py`): the mean over an image and the most of a pixel, in "
        "steps of 8 bits. What rounding grows to depends on the guide and its strength.",
    ]
    lines += ["", "| part | what it does |", "|---|---|"]
    for name, kind in used.items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0]
        told = " ".join(first.split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {told} |")
    return "\n".join(lines)


def elucd_report() -> str:
    """Tables and findings of ``ppap bench elucd``, as its report has them."""
    values = json.loads((DOCS / "results" / "elucd.json").read_text(encoding="utf-8"))
    return str(values["report"]).strip()


def check_tables() -> str:
    """The checks of the conformance kit, and why they are made."""
    lines: list[str] = []
    head = ["| check | what holds | why it matters |", "|---|---|---|"]
    for kind, claims in (
        ("guide", guides.GUIDE.claims),
        ("backbone", backbones.BACKBONE.claims),
        ("recipe", testing_recipes.RECIPE.claims),
    ):
        lines += [f"### Of a {kind}", "", *head]
        lines += [f"| `{claim.name}` | {claim.about} | {claim.why} |" for claim in claims]
        lines.append("")
    return "\n".join(lines).strip()


def bench_report() -> str:
    """What `ppap bench recipes` found, as it told it."""
    report: str = json.loads((DOCS / "results" / "recipes.json").read_text("utf-8"))["report"]
    return report.strip()


def spoiled_table() -> str:
    """What `ppap shapes evaluate spoiled` found."""
    found = json.loads((DOCS / "results" / "spoiled.json").read_text("utf-8"))
    names = list(found["rows"][0]["scores"])
    heads = [*(name.replace("_", " ") for name in names), "pairs right", "Fréchet distance"]
    lines = [
        f"| {found['images']} renders | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    plain = found["rows"][0]
    for row in found["rows"]:
        cells = []
        for name, value in [*row["scores"].items(), ("two_objects", row["two_objects"])]:
            before = plain["scores"].get(name, plain.get(name))
            # What fell by more than a tenth of what it was.
            cells.append(f"**{value:.2f}**" if value < 0.9 * before else f"{value:.2f}")
        about = row["name"] if row is plain else f"{row['name']}: {row['about']}"
        lines.append(f"| {about} | {' | '.join(cells)} | {row['frechet']:.1f} |")
    lines += ["", "Bold: more than a tenth below renders as they are."]
    return "\n".join(lines)


def familiarity_table() -> str:
    """What the networks that guides ship take for unfamiliar, as their files say."""
    lines = [
        "| network | far from | highest of renders | renders warned of | spoiled | as JPEG "
        "| lowest of other pictures | pictures warned of | further ones |",
        "|---|" + "---:|" * 8,
    ]
    for path in sorted((DOCS.parent / "plugins").rglob(f"src/**/{FILE}")):
        known = load_familiarity(path)
        told = known.measured
        shares = [f"{told[k]['warned of']:.1%} of {told[k]['count']}" for k in (
            "renders", "spoiled renders", "compressed renders", "pictures", "other pictures"
        )]  # fmt: skip
        lines.append(
            f"| `{path.parent.name}` | {known.limit:.2f} | {told['renders']['highest']:.2f} | "
            f"{' | '.join(shares[:3])} | {told['pictures']['lowest']:.2f} | "
            f"{' | '.join(shares[3:])} |"
        )
    return "\n".join(lines)


COMMANDS = {command.name: command for whole in commands() for command in (whole, *whole.commands)}


def target_table() -> str:
    """What the guides understood of files as people have them (``docs/target_files.py``)."""
    rows = json.loads((DOCS / "results" / "targets.json").read_text(encoding="utf-8"))
    lines = ["| file | what it is | network | target | what was understood |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        said = re.sub(r"([|<*_])", r"\\\1", row["said"]) + " *Doubted.*" * row["doubted"]
        lines.append(
            f"| `{row['file']}` | {row['about']} | {row['reader']} | `{row['target']}` | {said} |"
        )
    refused = sum(row["said"].startswith("Error:") for row in rows)
    doubted, wrong = (sum(bool(row[key]) for row in rows) for key in ("doubted", "wrong"))
    lines += ["", f"{len(rows)} files: {len(rows) - refused} read, {doubted} of them with a doubt; "
              f"{refused} refused; {wrong} understood wrongly."]  # fmt: skip
    return "\n".join(lines)


def sampler_table() -> str:
    """diffusers' schedulers that are samplers, and for which backbones."""
    lines = ["| sampler | scheduler of diffusers | method | for |", "|---|---|---|---|"]
    for name, one in DIFFUSERS.items():
        kind = getattr(diffusers, one.kind)
        given = ", ".join(f"`{key}={value}`" for key, value in one.settings.items())
        takes = "trained_betas" in inspect.signature(kind.__init__).parameters
        own = takes and name != "ipndm"
        lines.append(
            f"| `{name}` | `{one.kind}`{' with ' + given if given else ''} | {one.summary} | "
            f"{'any backbone' if own else 'pipelines with its schedule'} |"
        )
    return "\n".join(lines)


def refused_table() -> str:
    """diffusers' schedulers that are no samplers, and why."""
    rows = [f"| `{kind}` | {why} |" for kind, why in sorted(NO_SAMPLERS.items())]
    return "\n".join(["| scheduler | it |", "|---|---|", *rows])


TABLES = {
    "checks": check_tables,
    "commands": command_table,
    "modules": module_tables,
    "recipes": recipe_tables,
    "samplers": sampler_table,
    "refused": refused_table,
    "elucd": elucd_report,
    "bench_recipes": bench_report,
    "spoiled": spoiled_table,
    "familiarity": familiarity_table,
    "targets": target_table,
}


def with_tables(page: str) -> str:
    """A page with its generated parts written anew."""

    def anew(found: re.Match[str]) -> str:
        kind, _, of = found[2].partition(" ")
        text = command_reference(of) if kind == "command" else TABLES[kind]()
        return f"{found[1]}\n\n{text}\n\n<!-- end -->"

    return _PLACE.sub(anew, page)


def with_all_commands(page: str, name: str) -> str:
    """The page of a command with a place for it and for each of its own commands."""
    wanted = [command for command in COMMANDS if command.split()[0] == name]
    for command in wanted:
        if f"<!-- generated: command {command} -->" not in page:
            page += "" if not page else "\n"
            page += f"{'#' * len(command.split())} ppap {command}\n\n"
            page += f"<!-- generated: command {command} -->\n<!-- end -->\n"
    return page


def pages() -> dict[Path, str]:
    """What every page with generated parts should be."""
    folder = DOCS / "commands"
    found = {folder / f"{name}.md": "" for name in COMMANDS if " " not in name}
    for path in sorted(DOCS.rglob("*.md")):
        if DOCS / "examples" not in path.parents:
            found[path] = path.read_text(encoding="utf-8")
    for path, text in found.items():
        if path.parent == folder and path.stem in COMMANDS:
            found[path] = with_all_commands(text, path.stem)
    return {path: with_tables(text) for path, text in found.items() if _PLACE.search(text)}


def main() -> None:
    """Writes the pages that changed."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(DOCS)}")


if __name__ == "__main__":
    main()
