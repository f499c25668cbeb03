"""The commands that the documentation shows: where they are, and how each block is to be run.

``python tests/shown.py`` counts them. A fenced ``bash`` block runs as it is shown unless a comment
on the line above the fence says otherwise::

    <!-- commands: shortened --num 1 --steps 2 -->
    <!-- commands: looked up, REASON -->
    <!-- commands: not run, REASON -->

`shortened` runs the block with these options appended to each command of ``ppap`` that takes them.
Of a block that is `looked up`, the options are parsed and the names of guides, backbones and
recipes are looked up, and nothing is run. A block that is `not run` is left alone.
"""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import typer

from ppap_host.files.errors import PpapError, nearest
from ppap_host.plugins.registry import Kind as NamedKind
from ppap_host.plugins.registry import registry
from ppap_host.recipes.settings import split_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LEFT_OUT = {
    "docs/tutorial.md": "has a test of its own",
    "docs/examples": "are distributions with tests of their own",
}
"""Pages whose blocks are not run, and why."""

SHELL = "bash"
Kind = Literal["shown", "shortened", "looked up", "not run"]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})\s*(?P<language>[\w+-]*)(?P<rest>.*)$")
_COMMENT = re.compile(r"^ *<!--.*-->$")
_MARK = re.compile(r"<!--\s*commands\b(?P<said>.*?)-->")
_SAYS = re.compile(
    r"<!-- commands: (?:shortened (?P<options>-\S.*?)|(?P<kind>looked up|not run), (?P<why>\S.*?))"
    r" -->"
)
_NAMED: tuple[NamedKind, ...] = ("guide", "backbone", "recipe")
_OPERATORS = "();<>|&\n"
_KEYWORDS = {"!", "do", "done", "elif", "else", "fi", "for", "if", "then", "until", "while"}


class ShownError(ValueError):
    """A page, or a mark on it, that cannot be understood; says which line."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: of the fence, from 1.
        language: as written behind the fence; "" for none.
        text: without the fence and the fence's indentation; ends with a newline.
        comments: HTML comments on the lines directly above.
    """

    line: int
    language: str
    text: str
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commands:
    """A block of shell commands.

    Attributes:
        page: its path.
        line: of its fence, from 1.
        text: as shown.
        kind: what is to be done with it.
        options: that shorten it.
        reason: for not running it.
    """

    page: Path
    line: int
    text: str
    kind: Kind = "shown"
    options: tuple[str, ...] = ()
    reason: str = ""

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{_name(self.page)}:{self.line}"

    def ppap(self) -> list[list[str]]:
        """The arguments of each command of ``ppap``, also of ``... -m ppap_host``."""
        return [found for words in simple_commands(self.text) if (found := of_ppap(words))]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises:
        ShownError: the last block does not end.
    """
    found: list[Block] = []
    comments: list[str] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        opened = _FENCE.match(line)
        if opened is None or (opened["fence"][0] == "`" and "`" in opened["rest"]):
            comments = [*comments, line.strip()] if _COMMENT.match(line) else []
            continue
        indent, fence = len(opened["indent"]), opened["fence"]
        content = []
        for _, inner in lines:
            closed = inner.strip()
            if closed.startswith(fence) and not closed.strip(fence[0]):
                break
            content.append(inner[min(indent, len(inner) - len(inner.lstrip())) :])
        else:
            raise ShownError(f"the block of line {number} does not end")
        text_of = "".join(f"{inner}\n" for inner in content)
        found.append(Block(number, opened["language"], text_of, tuple(comments)))
        comments = []
    return found


def commands(page: Path) -> list[Commands]:
    """The blocks of shell commands of a page, in order.

    Raises:
        ShownError: a mark is unknown or malformed, or not above a block of the shell.
    """
    name, text = _name(page), page.read_text(encoding="utf-8")
    try:
        every = blocks(text)
    except ShownError as error:
        raise ShownError(f"{name}: {error}") from None
    found, marks = [], 0
    for block in every:
        own = [comment for comment in block.comments if _MARK.search(comment)]
        if own and (len(own) > 1 or own[0] != block.comments[-1]):
            raise ShownError(f"{name}:{block.line}: one mark, directly above the fence, please")
        if own and block.language != SHELL:
            raise ShownError(f"{name}:{block.line}: a mark of commands above another block")
        if block.language in ("sh", "shell", "console", "zsh"):
            raise ShownError(f"{name}:{block.line}: blocks of commands are written ```{SHELL}")
        marks += len(own)
        if block.language == SHELL:
            kind, options, reason = _said(own[0], name, block) if own else ("shown", (), "")
            found.append(Commands(page, block.line, block.text, kind, options, reason))
    outside = _MARK.findall(_without_blocks(text, every))
    if len(outside) != marks:
        raise ShownError(f"{name}: a mark of commands is not directly above a block of {SHELL}")
    return found


def _said(mark: str, name: str, block: Block) -> tuple[Kind, tuple[str, ...], str]:
    says = _SAYS.fullmatch(mark)
    if says is None:
        raise ShownError(
            f"{name}:{block.line}: {mark} is none of `commands: shortened --OPTION ...`, "
            "`commands: looked up, REASON` and `commands: not run, REASON`"
        )
    if says["options"]:
        return "shortened", tuple(shlex.split(says["options"])), ""
    kind: Kind = "looked up" if says["kind"] == "looked up" else "not run"
    return kind, (), says["why"]


def _without_blocks(text: str, every: Sequence[Block]) -> str:
    lines = text.splitlines()
    for block in every:
        for k in range(block.line - 1, block.line + 1 + block.text.count("\n")):
            lines[k] = ""
    return "\n".join(lines)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def pages() -> list[Path]:
    """Every page whose blocks are to be run, the left out ones apart."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    left = tuple(f"{name}/" for name in LEFT_OUT)
    return [page for page in found if not f"{_name(page)}/".startswith(left)]


def shown_pages() -> list[Path]:
    """Those of :func:`pages` that show commands."""
    return [page for page in pages() if f"```{SHELL}" in page.read_text(encoding="utf-8")]


# --------------------------------------------------------------------------------------------
# What is in a block
# --------------------------------------------------------------------------------------------


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command of a shell text: pipes, lists and substitutions apart.

    Redirections, assignments before a command, comments and the text of here-documents are left
    out. It reads what pages show, not every shell program.
    """
    lexer = shlex.shlex(_plain_lines(text), posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = []
    words: list[str] = []
    inner: list[str] = []
    is_file = False
    for token in [*lexer, "\n"]:
        if token.strip(_OPERATORS):
            if not is_file:
                words.append(token)
            inner += re.findall(r"\$\(([^()]*)\)", token)
            is_file = False
        elif "<" in token or ">" in token:
            is_file = True
        else:
            while words and (words[0] in _KEYWORDS or re.match(r"\w+=", words[0])):
                words = words[2:] if words[0] == "for" else words[1:]
            if words and words[0] not in ("in", "$"):
                found.append(words)
            for text_of in inner:
                found += simple_commands(text_of)
            words, inner, is_file = [], [], False
    return found


def _plain_lines(text: str) -> str:
    """Without continuations, comments and the text of here-documents."""
    kept, end = [], None
    for line in text.replace("\\\n", " ").splitlines():
        if end is not None:
            end = None if line.strip() == end else end
            continue
        begun = re.search(r"<<-?\s*(['\"]?)(\w+)\1", line)
        end = begun[2] if begun else None
        kept.append(re.sub(r"(^|\s)#.*", "", line))
    return "\n".join(kept) + "\n"


def of_ppap(words: list[str]) -> list[str] | None:
    """The arguments of ``ppap``, also behind ``-m ppap_host``; None for any other command."""
    if words[0] == "ppap":
        return words[1:]
    for k, pair in enumerate(itertools.pairwise(words)):
        if pair == ("-m", "ppap_host"):
            return words[k + 2 :]
    return None


# --------------------------------------------------------------------------------------------
# What ppap makes of it
# --------------------------------------------------------------------------------------------


def taken(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Those of some options, with their values, that a command of ``ppap`` takes.

    Args:
        arguments: of the command, its name first.
        options: options, each followed by its value if it has one.
    """
    command, _ = _found(arguments)
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    groups: list[list[str]] = []
    for word in options:
        if is_option(word):
            groups.append([])
        groups[-1].append(word)
    if command.name == "tune" and "--estimate" not in arguments:
        known -= {"--num"}  # of the harvest of an estimate alone
    return [word for group in groups if group[0] in known for word in group]


def _found(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The command of these arguments, which may be a group, and the arguments left for it."""
    from ppap_host.cli import PluginCommand, app

    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
        if isinstance(command, PluginCommand):
            command = command.loaded()
    return command, rest


def is_option(word: str) -> bool:
    """Whether a word is the name of an option, not a value (-3 is one)."""
    return re.match(r"--?[A-Za-z]", word) is not None


def look_up(arguments: Sequence[str]) -> None:
    """Whether ``ppap`` understands these arguments and knows the names in them; runs nothing.

    Raises:
        ShownError: there is no such command, option, guide, backbone, recipe or file of weights.
    """
    parsed = _parsed(arguments)
    values = parsed.params
    asked: list[tuple[NamedKind, str]] = [
        (kind, name) for kind in _NAMED for name in _each(values.get(kind))
    ]
    asked += [("guide", judge.partition("=")[0]) for judge in _each(values.get("judge"))]
    try:
        for kind, name in asked:
            registry().entry(kind, split_recipe(name)[0] if kind == "recipe" else name)
        if parsed.command.name == "weights" and values["name"]:
            registry().published(values["name"])
        if parsed.command.name == "run":
            _check_run(arguments, values)
    except PpapError as error:
        raise ShownError(f"ppap {shlex.join(arguments)}: {error}") from None


def _each(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _parsed(arguments: Sequence[str]) -> Any:
    """The context that the command would be invoked in."""
    from typer.core import TyperCommand
    from typer.testing import CliRunner

    from ppap_host.cli import app

    contexts: list[Any] = []

    def invoke(command: TyperCommand, context: Any) -> None:
        contexts.append(context)

    with patch.object(TyperCommand, "invoke", invoke):
        outcome = CliRunner().invoke(app, list(arguments))
    if outcome.exit_code or not contexts:
        raise ShownError(f"ppap {shlex.join(arguments)}: {outcome.output.strip()}")
    return contexts[-1]


def _check_run(arguments: Sequence[str], values: Mapping[str, Any]) -> None:
    """Each guide has a target, and the values make sense together."""
    from typer.testing import CliRunner

    from ppap_host.cli import app

    if values["config"] is None:
        outcome = CliRunner().invoke(app, [*arguments, "--print-config"])
        if outcome.exit_code:
            said = outcome.exception or outcome.output
            raise ShownError(f"ppap {shlex.join(arguments)}: {said}")


# --------------------------------------------------------------------------------------------
# How many there are
# --------------------------------------------------------------------------------------------


def counted(page: Path) -> Counter[str]:
    """How many commands of a page are run in which way."""
    found: Counter[str] = Counter()
    for block in commands(page):
        for words in simple_commands(block.text):
            own = of_ppap(words)
            if block.kind in ("looked up", "not run"):
                found[block.kind if own is not None else "not run"] += 1
            elif is_pip(words):
                found["checked"] += 1
            elif own is not None and taken(own, block.options):
                found["shortened"] += 1
            else:
                found["as shown"] += 1
    return found


def is_pip(words: Sequence[str]) -> bool:
    """Whether a command installs something."""
    return words[0] == "pip" or list(words[1:3]) == ["-m", "pip"]


def inline_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of ``ppap`` within the text: as written, and their arguments."""
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"(?<!`)`(ppap [^`\n]+)`(?!`)", _without_blocks(text, blocks(text))):
        yield span, shlex.split(span)[1:]


def check_inline(arguments: Sequence[str]) -> None:
    """Whether the command within a text exists and has the options; it may be abridged.

    Raises:
        ShownError: it does not.
    """
    command, rest = _found(arguments)
    members = getattr(command, "commands", None)
    if members and rest and rest[0].isalpha() and rest[0].islower():
        if rest[0] in _commands_of_examples():
            return
        close = nearest(rest[0], members)
        raise ShownError(f"`ppap {shlex.join(arguments)}`: no command {rest[0]!r}: {close}")
    for option in (word.partition("=")[0] for word in rest if re.match(r"--\w", word)):
        if option != "--help" and not taken(arguments, [option]):
            raise ShownError(f"`ppap {shlex.join(arguments)}`: no option {option}")


def _commands_of_examples() -> set[str]:
    """Commands that the example plugins add; they are not installed where pages are checked."""
    files = (DOCS / "examples").glob("*/pyproject.toml")
    tables = [tomllib.loads(file.read_text("utf-8"))["project"] for file in files]
    return {name for t in tables for name in t.get("entry-points", {}).get("ppap.commands", {})}


def main() -> None:
    """Prints a table of the pages and how many of their commands are run in which way."""
    ways = ("as shown", "shortened", "checked", "looked up", "not run")
    rows = {_name(page): counted(page) for page in shown_pages()}
    rows["in all"] = sum(rows.values(), Counter())
    width = max(map(len, rows))
    print(f"{'page':{width}}", *(f"{way:>10}" for way in ways))
    for name, row in rows.items():
        print(f"{name:{width}}", *(f"{row[way]:10}" for way in ways))


if __name__ == "__main__":
    main()
