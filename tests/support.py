"""What the installed diffusers has, and what of it can be guided: the tables of the documentation.

    python tests/support.py docs/backbones/support.md

makes every class's pipeline of tiny random networks, calls it, and writes what came out. A class is
never left out: what cannot be guided stands there with the words that it is refused with.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from pipelines import ContrastGuide
from torch import Tensor
from zoo import built, built_modular, classes, modular_classes

import ppap_host as ppap
from ppap_host.files.errors import GuidanceWarning, PpapError
from ppap_host.pipelines.callback import diffusers_callback
from ppap_host.pipelines.guider import guider
from ppap_host.pipelines.running import as_films
from ppap_host.pipelines.steer import steer
from ppap_host.pipelines.steering import Report
from ppap_host.recipes.presets import X0
from ppap_host.sampling.evaluator import Guidance

OTHERS = {
    "text to image": ["HiDreamImagePipeline", "DiTPipeline"],
    "text to video": ["TextToVideoSDPipeline"],
}
"""Classes that no AutoPipeline knows: that surveys name, or that have states of another kind."""
SCALE, SEED = 8.0, 3
OPTIONS = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "num_inference_steps": "steps",
    "height": "height", "width": "width", "strength": "strength",
}  # fmt: skip
"""Arguments of a call that are options of a run."""


class Indifferent(ContrastGuide):
    """A guide whose gradient is zero."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0 * super().loss(output, target)


class Watches(ContrastGuide):
    """A guide that has a loss and no gradient: what it says is of an unguided run."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        value = super().loss(output, target)
        return value.detach() + 0 * value


def asks(guide: type[ContrastGuide] = ContrastGuide, target: float = 40.0) -> Guidance:
    return Guidance(guide(), torch.tensor([target]), X0, SCALE)


def last_loss(report: Report) -> float:
    """Of the images' guide at the last step, the mean over the images."""
    row = report.losses["contrast"][-1]
    return sum(row) / len(row)


def call(pipe: Any, arguments: dict[str, Any], **more: Any) -> Tensor:
    """The frames of one call of a pipeline, [b, f, 3, h, w], from the same noise every time."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    films = as_films(pipe(**arguments, output_type="pt", generator=generator, **more))
    if "num_frames" in arguments and len(films) > 1:  # one video's frames, without a batch
        films = [torch.cat(films)]
    return torch.stack(films)


def run(pipe: Any, arguments: dict[str, Any], plain: Tensor) -> str:
    """Whether `ppap run` makes what the pipeline makes, and how far a guide brings its loss."""
    rest = {k: v for k, v in arguments.items() if k != "output" and v is not None}
    options = {o: rest.pop(a) for a, o in OPTIONS.items() if a in rest}
    if "negative_prompt" not in options and "prompt" in options:
        rest.pop("true_cfg_scale", None)  # which the pipeline itself leaves aside without one
    elif "true_cfg_scale" in rest:
        options["cfg"] = rest.pop("true_cfg_scale")
    if "guidance_scale" in rest and "true_cfg_scale" not in arguments:
        options["cfg"] = rest.pop("guidance_scale")
    guidance = ppap.guidance(ContrastGuide(), target="40.0", scale=SCALE, recipe="x0")
    try:
        unguided = ppap.sample(pipe, num=1, seed=SEED, pipeline=rest, **options)
        guided = ppap.sample(
            pipe, guidance, num=1, seed=SEED, pipeline=rest, unguided=True, **options
        )
    except PpapError as error:
        return told(error)
    made = unguided.tensor if unguided.tensor.ndim == 5 else unguided.tensor[:, :, None]
    pixels = (plain[:1].transpose(1, 2).clamp(0, 1) * 255).round()
    apart = ((made + 1) * 127.5).round() - pixels
    words = "equal bytes" if not bool(apart.any()) else f"apart by {apart.abs().max():.0f} of 255"
    (row,) = guided.record["images"]
    errors = [row[key]["contrast"]["error"] for key in ("unguided", "measures")]
    before, after = (error**2 for error in errors)
    return f"{words}; loss {before:.5g} to {after:.5g}"


def told(error: BaseException) -> str:
    """The words of a refusal, for a cell of a table."""
    return f"refused: {' '.join(str(error).split())}".replace("|", "/")


def class_row(kind: type) -> dict[str, str]:
    """What can be done with the pipelines of a class."""
    pipe, arguments = built(kind)
    try:
        block = steer(pipe, asks(Indifferent))
    except PpapError as error:
        return dict.fromkeys(("run", "steer", "callback"), told(error))
    plain = call(pipe, arguments)
    return {
        "run": run(pipe, arguments, plain),
        "steer": steered(lambda: call(pipe, arguments), plain, pipe, block),
        "callback": called_back(pipe, arguments, plain),
    }


def steered(make: Callable[[], Tensor], plain: Tensor, pipe: Any, block: Any) -> str:
    """What a guide without a gradient changes, and how far one with a gradient brings its loss."""
    try:
        with block as report:
            apart = difference(make(), plain)
        asked = len(report.trace) == report.steps > 0
        with steer(pipe, asks(Watches)) as watched:
            make()
        with steer(pipe, asks()) as guided:
            make()
    except PpapError as error:
        return told(error)
    before, after = last_loss(watched), last_loss(guided)
    every = "" if asked else f" ({len(report.trace)} of {report.steps} steps asked)"
    return f"{apart}{every}; loss {before:.5g} to {after:.5g}"


def difference(a: Tensor, b: Tensor) -> str:
    """Of two results, in words."""
    if torch.equal(a, b):
        return "equal bytes"
    return f"apart by {(a.float() - b.float()).abs().max():.2g}"


def called_back(pipe: Any, arguments: dict[str, Any], plain: Tensor) -> str:
    """Whether a callback does what the block does."""
    try:
        callback = diffusers_callback(pipe, asks())
    except PpapError as error:
        return told(error)
    with steer(pipe, asks()):
        expected = call(pipe, arguments)
    made = call(pipe, arguments, callback_on_step_end=callback)
    if torch.equal(made, expected) and not torch.equal(made, plain):
        return "as steer, to the byte"
    return f"apart from steer by {(made - expected).abs().max():.2g}"


def modular_row(name: str) -> dict[str, str]:
    """What can be done with a modular pipeline."""
    try:
        pipe, arguments = built_modular(name)
    except LookupError:
        return dict.fromkeys(("run", "steer", "guider"), "not tried: no tiny parts are known of it")

    def make() -> Tensor:
        return call(pipe, arguments)

    try:
        block = steer(pipe, asks(Indifferent))
        plain = make()
    except PpapError as error:
        return dict.fromkeys(("run", "steer", "guider"), told(error))
    # Whatever a pipeline says of parts that are too small for it.
    except Exception as error:
        words = (
            f"not tried: with tiny parts it fails by itself ({' '.join(str(error).split())[:120]})"
        )
        return dict.fromkeys(("run", "steer", "guider"), words.replace("|", "/"))
    row = {"run": run(pipe, arguments, plain), "steer": steered(make, plain, pipe, block)}
    try:
        parts = [part for part in pipe._component_specs if part.startswith("guider")] or ["guider"]
        ours = {p: guider(pipe, asks(), around=getattr(pipe, p, None)) for p in parts}
    except PpapError as error:
        return row | {"guider": told(error)}
    with steer(pipe, asks()):
        expected = make()
    pipe.update_components(**ours)
    found = make()
    apart = (found - expected).abs().max()
    row["guider"] = "as steer, to the byte" if not apart else f"apart from steer by {apart:.2g}"
    return row


@contextmanager
def quietly() -> Iterator[None]:
    """Without what diffusers has to say of tiny pipelines."""
    diffusers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", GuidanceWarning)
        yield


def table(title: str, rows: dict[str, dict[str, str]]) -> list[str]:
    """A table of Markdown; nothing of it is blank."""
    columns = list(next(iter(rows.values())))
    lines = [f"## {title}", "", f"| class | {' | '.join(columns)} |"]
    lines.append("|---|" + "---|" * len(columns))
    for name, row in rows.items():
        cells = [row[column] for column in columns]
        assert all(cells)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return [*lines, ""]


HEAD = f"""# What can be guided

Every class of the AutoPipelines of diffusers {diffusers.__version__} for pictures and videos, some others, and modular families, as tiny pipelines of random networks on the CPU, 4 steps. Prompts are given as `prompt_embeds` where a text encoder has no small form.

- **run**: what `ppap run` makes without a guide, against the pipeline alone with the same seed, in 8 bits; then the guide's loss of the result without and with guidance.
- **steer**: first what a guide with a zero gradient changes that is asked at every step, against the pipeline alone; then the guide's loss at the last step without and with its gradient (recipe `x0`, scale {SCALE:g}).
- **callback**, **guider**: whether they make what steer makes; or the words that they are refused with.

"Not tried" says that nothing is known of a family: it has no tiny parts here yet, or fails with them by itself.

This page is written by `nox -s support`; the tests make a sample of it again and compare.
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", default="", help="classes with this in their names")
    given = parser.parse_args(arguments)
    lines = [HEAD]
    torch.set_num_threads(1)
    for title, kinds in classes().items():
        kinds = kinds + [getattr(diffusers, name) for name in OTHERS.get(title, [])]
        rows = {k.__name__: made(class_row, k) for k in kinds if given.only in k.__name__}
        if rows:
            lines += table(title.capitalize(), rows)
    names = [name for name in modular_classes() if given.only in name]
    rows = {name: made(modular_row, name) for name in names}
    if rows:
        lines += table("Modular", rows)
    given.page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def made(row: Callable[[Any], dict[str, str]], of: Any) -> dict[str, str]:
    """A row, told on standard error while it is made."""
    name = of if isinstance(of, str) else of.__name__
    with quietly():
        try:
            found = row(of)
        except Exception:
            traceback.print_exc()
            raise SystemExit(f"No row for {name}.") from None
    print(name, found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
