"""Makes the pictures of the documentation by the commands that its pages show.

``python docs/make_pictures.py`` makes all, ``python docs/make_pictures.py quickstart`` one of them.

A block of commands whose result is a picture is marked by a comment on the line above it,

    <!-- picture: images/NAME.png = FILE -->

where FILE is what the commands write. The blocks of a page run in order, in an empty folder that
holds a copy of ``docs/images/target.png``. A block above them that makes no picture but what they
need, such as a target, is marked by

    <!-- pictures: need this -->

and runs whichever of them are made. A picture named ``.webp`` keeps all its colours; a large PNG
has 256 of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
TARGET = Path("docs/images/target.png")

_MARKED = re.compile(
    r"^<!-- (?:pictures: need this|picture: (?P<picture>\S+) = (?P<made>\S+)) -->\n"
    # What the tests are to do with the block stands between the two.
    r"(?:<!-- commands: [^\n]* -->\n)?"
    r"```bash\n(?P<commands>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LARGE = 60_000
"""Bytes from which on a picture has 256 colours."""


@dataclass(frozen=True)
class Recording:
    """One marked block.

    Attributes:
        page: its path below ``docs``.
        picture: path below ``docs``; None if others need what the block makes.
        made: what the commands write, relative to the folder they run in; None as ``picture``.
        commands: the block as it is shown.
    """

    page: str
    picture: str | None
    made: str | None
    commands: str

    def named(self, names: Collection[str]) -> bool:
        """Whether it makes one of the pictures of these names."""
        return self.picture is not None and Path(self.picture).stem in names


def recordings() -> Iterator[Recording]:
    """All marked blocks, page by page."""
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        for found in _MARKED.finditer(path.read_text(encoding="utf-8")):
            yield Recording(page, found["picture"], found["made"], found["commands"])


def put(made: Path, picture: Path) -> None:
    """Puts what was made where it belongs: as WebP, or as PNG that is shrunk where it is large."""
    if picture.suffix == ".webp":
        with Image.open(made) as image:
            image.convert("RGB").save(picture, quality=95, method=6)
    else:
        shutil.copyfile(made, picture)
        shrink(picture)


def shrink(path: Path) -> None:
    """Gives a large picture 256 colours, dithered, and drops what its file says besides."""
    if path.stat().st_size < LARGE:
        return
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    # Pillow dithers only to a palette that it is given.
    palette = rgb.quantize(256, Image.Quantize.FASTOCTREE)
    rgb.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def make(wanted: list[Recording]) -> None:
    """Runs the blocks and replaces their pictures."""
    # The commands of this environment come first, whether it is activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for page in dict.fromkeys(r.page for r in wanted):
        with tempfile.TemporaryDirectory(prefix="ppap-docs-") as name:
            scratch = Path(name)
            (scratch / TARGET).parent.mkdir(parents=True)
            for recording in (r for r in wanted if r.page == page):
                if (DOCS / "images" / TARGET.name).exists():
                    shutil.copyfile(DOCS / "images" / TARGET.name, scratch / TARGET)
                print(recording.commands, end="", flush=True)
                subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", recording.commands],
                    cwd=scratch,
                    env=os.environ | {"PATH": path},
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                if recording.picture is None or recording.made is None:
                    continue
                picture = DOCS / recording.picture
                picture.parent.mkdir(exist_ok=True)
                put(scratch / recording.made, picture)
                print(f"# wrote {recording.picture}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="pictures to make, such as quickstart; all if none"
    )
    names = parser.parse_args(arguments).names
    found = list(recordings())
    unknown = {name for name in names if not any(r.named([name]) for r in found)}
    if unknown:
        parser.error(f"no block makes {', '.join(sorted(unknown))}")
    pages = {r.page for r in found if not names or r.named(names)}
    make([r for r in found if r.page in pages and (not names or not r.picture or r.named(names))])


if __name__ == "__main__":
    main()
