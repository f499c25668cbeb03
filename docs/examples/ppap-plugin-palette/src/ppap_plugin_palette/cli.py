"""The command ``ppap palette``: the palette of a picture, ready for --target."""

import json
from pathlib import Path
from typing import Annotated

import typer

# Looks like the host's own commands: plain help, also by -h.
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def palette(
    image: Annotated[Path, typer.Argument(help="A picture that Pillow reads.")],
    count: Annotated[int, typer.Option("-n", "--num", min=1, max=64, help="Colours.")] = 6,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="PNG of swatches.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print the palette of a picture, darkest colour first, as `ppap run --target` reads it.

    Each colour comes with its share of the picture in per cent.
    """
    # Not above: --help need not wait for torch.
    from ppap_host.files.images import read_rgb, to_tensor
    from ppap_host.files.writing import write_png

    from ppap_plugin_palette import palettes
    from ppap_plugin_palette.colour import OKLab

    picture = read_rgb(image)
    # Large enough for every share above a ten-thousandth, small enough to take no time.
    picture.thumbnail((256, 256))
    found = palettes.find(OKLab()((to_tensor(picture) + 1) / 2)[0], count)
    if out is not None:
        write_png(out, palettes.draw(found.bars(128, 512)))
    if as_json:
        pairs = zip(found.hexes(), found.shares.tolist(), strict=True)
        colours = [{"hex": colour, "share": round(share, 4)} for colour, share in pairs]
        typer.echo(json.dumps({"target": found.text(), "colours": colours}, indent=2))
    else:
        typer.echo(found.text())
