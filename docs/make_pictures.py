"""Makes the pictures of the documentation by the commands that its pages show.

``python docs/make_pictures.py`` makes all, ``python docs/make_pictures.py quickstart`` one of them.

A block of commands whose result is a picture is marked by a comment on the line above it,

    <!-- picture: images/NAME.png = FILE -->

where FILE is what the commands write. The blocks of a page run in order, in an empty folder that
holds a copy of ``docs/images/target.png``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
TARGET = Path("docs/images/target.png")

_MARKED = re.compile(
    r"^<!-- picture: (?P<picture>\S+) = (?P<made>\S+) -->\n```bash\n(?P<commands>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Recording:
    """One marked block.

    Attributes:
        page: its name.
        picture: path below ``docs``.
        made: what the commands write, relative to the folder they run in.
        commands: the block as it is shown.
    """

    page: str
    picture: str
    made: str
    commands: str


def recordings() -> Iterator[Recording]:
    """All marked blocks, page by page."""
    for path in sorted(DOCS.glob("*.md")):
        for found in _MARKED.finditer(path.read_text(encoding="utf-8")):
            yield Recording(path.name, found["picture"], found["made"], found["commands"])


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
                picture = DOCS / recording.picture
                picture.parent.mkdir(exist_ok=True)
                shutil.copyfile(scratch / recording.made, picture)
                print(f"# wrote {recording.picture}", flush=True)


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="pictures to make, such as quickstart; all if none"
    )
    names = parser.parse_args().names
    found = list(recordings())
    unknown = set(names) - {Path(r.picture).stem for r in found}
    if unknown:
        parser.error(f"no block makes {', '.join(sorted(unknown))}")
    make([r for r in found if not names or Path(r.picture).stem in names])


if __name__ == "__main__":
    main()
