"""``ppap calibrate``: is a guide as sure as it is right, and temperatures that make it so."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_folder, check_new, check_weights
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    MACHINE,
    AsJson,
    BackboneOption,
    Checkpoint,
    OpenIt,
    Vae,
    backbone_options,
    option,
)
from ppap_host.cli.output import open_file, print_json, remark, tell, tell_path, warn
from ppap_host.cli.progress import Watch, progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import CheckpointError, OptionError, unknown_name

if TYPE_CHECKING:
    from ppap_host.backbones.backbone import Backbone
    from ppap_host.experts.calibration import Calibration
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.guides.guide import Guide
    from ppap_plugin_bench.calibration.material import Material

_SEED = 1_000_000
"""Added to the seed of an own harvest: experts must not be measured on what they were taught on."""


_IMAGES, _MEASURING = "What to measure on", "Measuring"


def calibrate(
    guide: Annotated[
        str,
        typer.Argument(
            metavar="GUIDE", autocompletion=complete.of("guide"), help="See `ppap list guides`."
        ),
    ],
    out: Annotated[Path, options.out("Folder to write.")],
    model: Annotated[str | None, option(
        "Network of the guide; default: the one that it ships.",
        "--model", "-m", metavar="FILE|FOLDER|HUB-NAME",
    )] = None,
    experts: Annotated[str | None, option(
        "A set, or none; default: for noised images one that fits.",
        "--experts", "-e", metavar="NAME|FILE|FOLDER|none",
        autocompletion=complete.of("expert set"),
    )] = None,
    num: Annotated[int, options.num("Images at most.", min=2)] = 500,
    seed: Annotated[int, option("Of images and noise.", min=0)] = 0,
    harvest: Annotated[Path | None, option(
        "Folder of `ppap harvest`. [default: made in --out]",
        panel=_IMAGES, metavar="FOLDER",
    )] = None,
    images: Annotated[Path | None, option(
        "Folder of images, instead of a harvest.",
        panel=_IMAGES, metavar="FOLDER",
    )] = None,
    labels: Annotated[bool, option(
        "Trust labels, not the teacher: names of folders in --images, else renders of the "
        "backbone shapes.",
        "--labels", panel=_IMAGES,
    )] = False,
    backbone: Annotated[str | None, options.backbone(told="the harvest's own, else shapes")] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    backbone_option: BackboneOption = None,
    view: Annotated[str | None, option(
        "noised (x_t), or predicted (x_0 from x_t); default: the experts', else noised.",
        panel=_MEASURING, metavar="NAME", autocompletion=complete.among(("noised", "predicted")),
    )] = None,
    ranges: Annotated[
        int | None, option("Noise ranges; default: the experts', else 5.", panel=_MEASURING, min=1)
    ] = None,
    levels: Annotated[int, option("Noise levels in each range.", panel=_MEASURING, min=1)] = 2,
    bins: Annotated[int, option("Of the reliability diagrams.", panel=_MEASURING, min=1)] = 15,
    batch: Annotated[int, option("Images at a time.", panel=MACHINE)] = 25,
    device: Annotated[str, options.device()] = "auto",
    dtype: Annotated[str, options.dtype("Of the network")] = "float32",
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure whether a guide is as sure as it is right, by noise, and fit temperatures.

    No labels are needed: what the plain network says of the clean image is the truth, on images
    that the backbone makes. Writes calibration.json, reliability.png and ece.png.
    """
    from ppap_host.plugins.registry import registry

    found = registry()
    found.entry("guide", guide)
    if view not in (None, "noised", "predicted"):
        raise unknown_name("view", view, ("noised", "predicted"))
    if harvest is not None and (images is not None or labels):
        raise OptionError(
            f"--harvest and --{'images' if images is not None else 'labels'} exclude each other.",
            remedy="A harvest has no labels; leave one of them out.",
        )
    if labels and images is None and backbone not in (None, "shapes"):
        raise OptionError(
            f"There are no labelled images for the backbone {backbone!r}.",
            remedy="Give a folder with one folder of images a class with --images.",
        )
    check_new(out, "calibration.json", "a calibration")
    check_weights(checkpoint)
    check_weights(model)
    if backbone is not None:
        found.entry("backbone", backbone)
    if harvest is not None:
        remedy = "Make one with `ppap harvest --out FOLDER`, or leave out --harvest."
        check_folder(harvest, "harvest.json", CheckpointError, remedy)
    if images is not None and not os.path.isdir(images):
        raise OptionError(f"There is no folder {str(images)!r}.", remedy="Check --images.")
    from ppap_host.files.folders import Job

    with progress_bar() as watch, Job(out):
        watch("loading libraries", 0, 1)
        check_new(out, "calibration.json", "a calibration")
        calibration = _calibrate(
            guide, out, model, backbone, checkpoint, backbone_options(backbone_option, vae=vae),
            experts, num, harvest, images, labels, device, dtype,
            {
                "view": view, "ranges": ranges, "levels": levels, "bins": bins, "seed": seed,
                "batch": batch,
            },
            watch,
        )  # fmt: skip
    if as_json:
        print_json(calibration.to_dict())
    else:
        _show(calibration)
        tell_path("Calibration", out)
        tell_path("Reliability", out / "reliability.png")
        tell_path("Error by noise", out / "ece.png")
    if open_it:
        open_file(out / "reliability.png")


def _calibrate(
    name: str,
    out: Path,
    model: str | None,
    backbone_name: str | None,
    checkpoint: str | None,
    options: dict[str, str],
    experts_name: str | None,
    num: int,
    harvest_folder: Path | None,
    images_folder: Path | None,
    labels: bool,
    device_name: str,
    dtype_name: str,
    settings: dict[str, Any],
    watch: Watch,
) -> Calibration:
    """Measures and writes."""
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.patches import network_hash
    from ppap_host.experts.sets import WithExperts
    from ppap_host.files.hashes import file_hashes, package_versions
    from ppap_host.plugins.loading import load_backbone, load_guide
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.devices import pick_device, pick_dtype
    from ppap_host.runs.harvesting import backbone_of
    from ppap_plugin_bench.calibration import measurement
    from ppap_plugin_bench.calibration.measurement import CalibrationConfig
    from ppap_plugin_bench.plots import plot_calibration_errors, plot_reliability

    found = registry()
    device = pick_device(device_name)
    made = None if harvest_folder is None else Harvest.open(harvest_folder)
    if made is None:
        backbone_name = backbone_name or "shapes"
        backbone = load_backbone(found, backbone_name, checkpoint, options)
    else:
        backbone = backbone_of(made, found, backbone_name, checkpoint, options)
        backbone_name = made.config.backbone
    guide: Guide = load_guide(found, name, model)
    measurement.check_classes(guide, backbone.image_size)
    sha256 = network_hash(guide.network())
    used, experts = _experts(experts_name, settings["view"], guide, backbone)
    if settings["view"] is None:
        settings = settings | {"view": "noised" if experts is None else experts.view}
    config = CalibrationConfig(**settings)
    if experts is not None:
        guide = WithExperts(guide, experts, image_size=backbone.image_size)
        measurement.check_view(guide, config.view)
        remark(f"{name}: with the experts {used}")
    if images_folder is not None or labels:
        material = _given(guide, images_folder, backbone, num, config.seed, labels, watch)
    else:
        if made is None:
            made = _harvest(
                out, backbone_name, checkpoint, options, num, config.seed, device_name, watch
            )
        material = _harvested(made, num, experts)
    guide.to(device, pick_dtype(dtype_name, device))
    backbone.to(device, pick_dtype("float32", device))
    calibration = measurement.calibrate(
        guide, backbone, material, config, used, watch, network_sha256=sha256
    )
    watch("drawing", 0, 1)
    plugins = [p.distribution for p, _ in found.names("guide")[name]]
    plugins += [p.distribution for p, _ in found.names("backbone")[backbone_name]]
    details = {
        **calibration.details,
        "model": model,
        "backbone": {
            "name": backbone_name,
            "files": file_hashes(backbone.files(), backbone_name),
        },
        "device": device.type,
        "dtype": dtype_name,
        "versions": package_versions(plugins),
    }
    calibration = dataclasses.replace(calibration, details=details)
    plot_reliability(calibration, out / "reliability.png")
    plot_calibration_errors(calibration, out / "ece.png")
    calibration.save(out / "calibration.json")
    return calibration


def _experts(
    name: str | None, view: str | None, guide: Guide, backbone: Backbone
) -> tuple[str | None, ExpertSet | None]:
    """The set that was named, or for noised images the one that fits, as ``ppap run`` chooses."""
    from ppap_host.experts.sets import ExpertSet
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import NONE, expert_set_path, fitting_set

    if name == NONE or (name is None and view == "predicted"):
        return None, None
    if name is not None:
        return name, ExpertSet.load(expert_set_path(name, registry()))
    fitting = fitting_set(guide, backbone, registry())
    return (None, None) if fitting is None else fitting[:2]


def _given(
    guide: Guide,
    folder: Path | None,
    backbone: Backbone,
    num: int,
    seed: int,
    labels: bool,
    watch: Watch,
) -> Material:
    """Images that the backbone did not make."""
    from ppap_plugin_bench.calibration.material import from_folder, from_renders

    watch("reading images" if folder is not None else "rendering scenes", 0, 1)
    if folder is None:
        return from_renders(guide, num, seed)
    return from_folder(guide, folder, backbone.image_size, num, seed, labels)


def _harvest(
    out: Path,
    backbone: str,
    checkpoint: str | None,
    options: dict[str, str],
    num: int,
    seed: int,
    device: str,
    watch: Watch,
) -> Harvest:
    """Images of the backbone's own, in the folder ``harvest`` of ``out``."""
    from ppap_host.experts.harvest import HarvestConfig
    from ppap_host.runs.harvesting import harvest as make

    config = HarvestConfig(
        backbone=backbone, checkpoint=checkpoint, backbone_options=options, num=num,
        seed=_SEED + seed, device=device,
    )  # fmt: skip
    try:
        return make(config, out / "harvest", watch)
    except KeyboardInterrupt:
        remark("Interrupted: the same command goes on from here.", "yellow")
        raise typer.Exit(INTERRUPTED) from None


def _harvested(made: Harvest, num: int, experts: ExpertSet | None) -> Material:
    """A harvest's images; says so if the experts were taught on them."""
    from ppap_plugin_bench.calibration.material import from_harvest

    material = from_harvest(made, num)
    taught = {} if experts is None else experts.metadata.get("harvest") or {}
    same = ("backbone", "seed", "prompts", "cfg", "steps", "sampler", "eta", "model_files")
    if taught and all(taught.get(key) == material.identity[key] for key in same):
        warn(
            "the experts were taught on these very images and may look better calibrated than "
            "they are. Leave out --harvest, or harvest with another --seed."
        )
    return material


def _show(calibration: Calibration) -> None:
    """The table, for people."""
    details, integral = calibration.details, calibration.details["integral"]
    right = "accuracy" if details["truth"] == "labels" else "agreement"
    experts = f", experts {calibration.experts}" if calibration.experts else ""
    titles = (
        "n", right, "confidence", "ECE", "smECE", "temperature", "ECE after", "smECE after"
    )  # fmt: skip
    rows = [
        [
            part.name,
            f"{part.count:,}",
            f"{part.accuracy:.3f}",
            f"{part.confidence:.3f}",
            f"{part.ece:.3f} ± {part.ece_error:.3f}",
            f"{part.smooth_ece:.3f}",
            f"{part.temperature:.3g}",
            f"{part.ece_after:.3f} ± {part.ece_error_after:.3f}",
            f"{part.smooth_ece_after:.3f}",
        ]
        for part in calibration.ranges
    ]
    show_table(
        [Column("log-SNR"), *(Column(title, number=True) for title in titles)],
        rows,
        f"{calibration.guide}, {calibration.view}{experts}; truth: {details['truth']}",
    )
    for when, suffix in (("before", ""), ("after", "_after")):
        mean, error = integral[f"mean{suffix}"], integral[f"mean_error{suffix}"]
        trapezoid = integral[f"trapezoid{suffix}"]
        tell(
            f"Error over all noise {when}: mean {mean:.4f} ± {error:.4f}, trapezoid {trapezoid:.4f}"
        )


app = Application()
app.command()(calibrate)
