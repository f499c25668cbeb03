"""``import ppap_host as ppap``: what scripts and notebooks are promised."""

from __future__ import annotations

import gc
import pkgutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from worlds import GaussianBackbone

import ppap_host as ppap
from ppap_host.cli import _explained
from ppap_host.files.errors import OptionError, PpapError, RecordError
from ppap_host.guides.guide import Guide
from ppap_host.recipes.presets import CFG_PP, DPS
from ppap_host.runs.config import RunConfig
from ppap_host.testing.worlds import GaussianWorld

FAST = dict(steps=4, num=2)


def redder_left(x0: Tensor) -> Tensor:
    return -(x0[:, 0, :, :32] - x0[:, 2, :, :32]).mean((1, 2))


class Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((1, 2, 3))


@pytest.fixture(scope="module")
def world() -> object:
    return ppap.load_backbone("shapes")


def test_the_import_is_light_and_names_everything() -> None:
    """With every plugin that is installed asked for its names."""
    code = (
        "import sys, ppap_host as p; names = dir(p); assert 'sample' in names, names; "
        "assert p.__version__; assert p.list_guides() and p.list_samplers() and p.list_experts(); "
        "heavy = {'torch', 'timm', 'diffusers', 'transformers', 'segmentation_models_pytorch'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_public_name_is_a_module_and_no_import_overwrites_one() -> None:
    names = [name for name in dir(ppap) if not name.startswith("_")]
    before = {name: getattr(ppap, name) for name in names}
    for found in pkgutil.walk_packages(ppap.__path__, "ppap_host."):
        if ".scaffold." in found.name or found.name.endswith("__main__"):
            continue
        import_module(found.name)
    modules = {found.name for found in pkgutil.iter_modules(ppap.__path__)}
    assert not modules & set(names)
    assert {name: getattr(ppap, name) for name in names} == before


def test_what_there_is_to_choose_from() -> None:
    for listed in (
        ppap.list_guides(), ppap.list_backbones(), ppap.list_recipes(), ppap.list_samplers(),
        ppap.list_experts(),
    ):  # fmt: skip
        assert listed
        assert all(isinstance(k, str) and v and "\n" not in v for k, v in listed.items())


def test_a_function_steers_without_an_adapter(world: object) -> None:
    plain = ppap.sample(world, **FAST)
    result = ppap.sample(world, ppap.guidance(redder_left), **FAST)
    for x, y in zip(plain.tensor, result.tensor, strict=True):
        assert redder_left(y[None]) < redder_left(x[None])
    assert [row["redder_left"]["loss"] for row in result.measures] == pytest.approx(
        redder_left(result.tensor).tolist(), abs=0.01
    )
    assert result.record["objects"] == ["the guide 'redder_left'"]
    assert isinstance(result.sheet(), Image.Image)
    assert result._repr_png_().startswith(b"\x89PNG")


def test_results_are_the_same_in_memory_in_a_folder_and_saved(
    world: object, tmp_path: Path
) -> None:
    guide = ppap.guidance("classifier", target="red cube")
    inside = ppap.sample(world, guide, **FAST, seed=7)
    written = ppap.sample(world, guide, **FAST, seed=7, out=tmp_path / "written")
    saved = inside.save(tmp_path / "saved")
    assert saved.folder == tmp_path / "saved"
    names = {"00000.png", "00001.png", "run.json", "sheet.png"}
    for name in names:
        one, two = ((tmp_path / f / name).read_bytes() for f in ("written", "saved"))
        assert one == two or name == "run.json"
    assert [p.tobytes() for p in written.images] == [p.tobytes() for p in inside.images]
    assert written.measures == inside.measures
    with pytest.raises(PpapError, match="already"):
        inside.save(tmp_path / "again")


def test_a_record_makes_its_images_again_with_changes(world: object, tmp_path: Path) -> None:
    guide = ppap.guidance("classifier", target="red cube", scale=3.0)
    first = ppap.sample(world, guide, **FAST, out=tmp_path / "out")
    again = ppap.rerun(tmp_path / "out" / "00000.png")
    assert again.record["images"] == first.record["images"]
    longer = ppap.rerun(tmp_path / "out", steps=6)
    assert longer.record["config"]["steps"] == 6
    assert longer.record["config"]["guides"][0]["scale"] == 3.0
    assert longer.record["images"] != first.record["images"]


def test_what_was_in_memory_has_to_be_given_again(world: object, tmp_path: Path) -> None:
    guide = ppap.guidance(redder_left)
    first = ppap.sample(world, guide, **FAST, out=tmp_path / "out")
    with pytest.raises(RecordError, match=r"'redder_left'.*object in memory"):
        ppap.rerun(tmp_path / "out")
    again = ppap.rerun(tmp_path / "out", guides=guide)
    assert again.record["images"] == first.record["images"]
    own = ppap.sample(GaussianBackbone(), steps=2, num=1, out=tmp_path / "own")
    with pytest.raises(RecordError, match="backbone"):
        ppap.rerun(tmp_path / "own")
    assert ppap.rerun(tmp_path / "own", backbone=GaussianBackbone()).measures == own.measures


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("of_run", [False, True])
def test_a_recipe_in_memory_is_the_same_as_by_its_name(
    world: object, tmp_path: Path, of_run: bool, absolute: bool
) -> None:
    def asked(recipe: object) -> dict[str, object]:
        own, run = ({}, {"recipe": recipe}) if of_run else ({"recipe": recipe}, {})
        guide = ppap.guidance("classifier", "red cube", scale=2.0, absolute=absolute, **own)
        return {"guides": guide, **run}

    own = replace(DPS, name="mine")
    found = ppap.sample(world, **asked(own), **FAST, out=tmp_path / "out")
    images = [p.tobytes() for p in found.images]
    assert images == [p.tobytes() for p in ppap.sample(world, **asked("dps"), **FAST).images]
    assert found.record["used"]["guides"][0]["recipe"] == "mine"
    told = "the recipe 'mine'" if of_run else "the recipe of 'classifier'"
    assert found.record["objects"] == [told]
    with pytest.raises(RecordError, match=r"recipe .*object in memory.*Give"):
        ppap.rerun(tmp_path / "out")
    again = {"recipe": own} if of_run else asked(own)
    assert images == [p.tobytes() for p in ppap.rerun(tmp_path / "out", **again).images]


def test_a_process_in_memory_needs_no_guide(world: object) -> None:
    asked = {"prompt": "a red cube", "cfg": 0.6, **FAST}
    made = ppap.sample(world, recipe=replace(CFG_PP, name="mine"), **asked)
    assert torch.equal(made.tensor, ppap.sample(world, recipe="cfg++", **asked).tensor)
    with pytest.raises(OptionError, match="the name of a recipe, or a Recipe"):
        ppap.guidance("depth", recipe=5)


def test_the_trajectory_tells_what_every_guide_said(world: object) -> None:
    model = Brightness()
    asked = ppap.guidance(ppap.reward(model), name="aesthetic", scale=2)
    steps = list(ppap.trajectory(world, asked, steps=3, num=2, keep_gradients=True))
    assert [step.index for step in steps] == [0, 1, 2]
    for step in steps:
        assert step.images == (0, 1)
        assert step.x.shape == step.x0.shape == step.x0_unguided.shape == (2, 3, 64, 64)
        # Asked about the backbone's own prediction; a reward's loss is minus its value.
        expected = -model(step.x0_unguided)
        assert torch.allclose(step.loss["aesthetic"], expected, atol=1e-6)
        # The gradient of minus that loss is the same positive number in every pixel.
        gradient, size = step.gradient["aesthetic"], step.gradient_size["aesthetic"]
        assert torch.allclose(gradient, size.view(-1, 1, 1, 1).expand_as(gradient), rtol=1e-3)
        assert (size > 0).all()
        assert not step.cut["aesthetic"].any()
        assert not any(t.requires_grad for t in (step.x, step.x0, step.loss["aesthetic"]))
        assert torch.equal(step.image(), step.x0)
    assert (steps[0].x0 > steps[0].x0_unguided).float().mean() > 0.9


def test_a_trajectory_may_be_left_early(world: object) -> None:
    going = ppap.trajectory(world, steps=3, num=4, batch=2)
    for step in going:
        if step.images == (2, 3):
            break
    going.close()
    result = going.result()
    assert [entry["index"] for entry in result.record["images"]] == [0, 1]
    assert result.record["status"] == "interrupted"
    assert len(result.images) == 2


def test_what_a_loop_has_made_so_far_is_a_result_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    world = GaussianWorld((8, 8))
    steps = ppap.trajectory(world, ppap.guidance(Brightness()), num=2, batch=1, steps=2)
    nothing = steps.result()
    assert nothing.tensor.shape == (0, 3, 0, 0)
    for step in steps:
        if 1 in step.images:
            break
    assert repr(steps) == "<Run: running, 1 of 2 images made>"
    early = steps.result().save("~/early")
    assert early.folder == tmp_path / "early" and early.record["status"] == "interrupted"
    assert len(list(steps)) == 1 and len(steps.result().images) == 2
    assert len(early.images) == 1 and len(nothing.images) == 0
    for record in (early, "~/early"):
        again = ppap.rerun(record, guides=ppap.guidance(Brightness()), backbone=world)
        assert torch.equal(again.tensor, steps.result().tensor)
    more = ppap.rerun(early, guides=[], backbone=world, seed=[1, 2, 3])
    assert len(more.images) == 3
    for wrong in ("", 3):
        with pytest.raises(PpapError, match="is no folder"):
            ppap.sample(world, out=wrong)
    with pytest.raises(RecordError, match="3 is no record"):
        ppap.rerun(3)
    with pytest.raises(OptionError, match=r"'stepz' in ppap\.rerun"):
        ppap.rerun(early, backbone=world, stepz=3)


def test_rewards_take_no_target(world: object) -> None:
    with pytest.raises(OptionError, match="reward"):
        ppap.sample(world, ppap.guidance(ppap.reward(redder_left), target="x.png"), **FAST)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x.mean(), r"shape \[\]"),
        (lambda x: x.mean((2, 3)), r"shape \[2, 3\]"),
        (lambda x: 1.0, "a float"),
    ],
)
def test_a_loss_of_another_shape_is_an_error(world: object, wrong: object, said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        ppap.sample(world, ppap.guidance(wrong, name="wrong"), **FAST)
    assert "[2]" in caught.value.remedy


def scaled(x: Tensor, by: float) -> Tensor:
    return by * x.mean((1, 2, 3))


def likeness(x: Tensor, target: Tensor) -> Tensor:
    return -(x * target).mean((1, 2, 3))


GREY = torch.full((3, 8, 8), -0.5)


@pytest.mark.parametrize(
    ("what", "target", "said"),
    [
        (None, None, "None cannot steer"),
        ([redder_left], None, "cannot steer"),
        (scaled, None, r"as it\(x\), and cannot be: missing a required argument: 'by'"),
        (Brightness(), GREY, r"as it\(x, target\), and cannot be: too many"),
        (type("Half", (Guide,), {}), None, "lacks distance, loss"),
        (type("Needs", (), {"__init__": scaled}), None, r"as it\(\), and cannot be: missing"),
        (likeness, "", "cannot take the target ''"),
        (likeness, [None, None], "was given no target"),
        (lambda x: x.detach().mean((1, 2, 3)), None, "no gradient"),
        (lambda x: (x > 0).sum((1, 2, 3)), None, "no gradient"),
        (lambda x: torch.zeros(len(x), requires_grad=True), None, "no gradient"),
    ],
)
def test_what_cannot_steer_is_told_in_a_line(what: object, target: object, said: str) -> None:
    with pytest.raises(PpapError, match=said):
        ppap.sample(GaussianWorld((8, 8)), ppap.guidance(what, target, name="it"), **FAST)


def test_nothing_has_a_gradient_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(OptionError) as caught:
        ppap.sample(GaussianWorld((8, 8)), ppap.guidance(Brightness()), **FAST)
    assert "inference_mode" in caught.value.remedy


@pytest.mark.parametrize(
    ("as_it_is", "otherwise"),
    [
        (ppap.guidance(lambda x: x.mul_(2).mean((1, 2, 3))), ppap.guidance(partial(scaled, by=2))),
        (ppap.guidance(Brightness), ppap.guidance(Brightness())),
        (
            ppap.guidance(likeness, (row for row in (GREY, GREY)), scale=np.float32(2)),
            ppap.guidance(likeness, [GREY, GREY], scale=2),
        ),
    ],
)
def test_what_is_meant_is_understood(as_it_is: object, otherwise: object) -> None:
    seeds = (np.arange(2), range(2))
    world = GaussianWorld((8, 8))
    one, other = (
        ppap.sample(world, g, seed=s, steps=3)
        for g, s in zip((as_it_is, otherwise), seeds, strict=True)
    )
    assert torch.equal(one.tensor, other.tensor)


def test_what_is_printed_is_short(world: object) -> None:
    guide = ppap.guidance("classifier", target="red cube", scale=2.0)
    assert repr(guide) == "GuideConfig(name='classifier', target='red cube', scale=2.0)"
    result = ppap.sample(world, guide, **FAST)
    (event, *_) = ppap.trajectory(world, guide, **FAST)
    assert repr(event).startswith("<Event: step 1 of ") and ", loss: classifier " in repr(event)
    for thing in (world, ppap.load_guide("classifier"), guide, result, event):
        assert len(repr(thing)) < 80


def test_equal_names_are_told_apart(world: object) -> None:
    twice = [ppap.guidance(redder_left), ppap.guidance(redder_left, scale=0.5)]
    result = ppap.sample(world, twice, steps=2, num=1)
    assert set(result.measures[0]) == {"redder_left", "redder_left-2"}


def test_a_description_loads_nothing_and_serves_again(world: object) -> None:
    described = ppap.guidance("classifier", target="no such class", scale=1.5)
    assert described.target == "no such class"
    good = ppap.guidance("classifier", target="red cube")
    one = ppap.sample(world, good, steps=2, num=1)
    two = ppap.sample(world, good, steps=2, num=1)
    assert one.record["images"] == two.record["images"]
    with pytest.raises(OptionError, match="finite"):
        ppap.guidance("depth", target="x.png", scale=float("nan"))


def test_lists_say_how_many_images_there_are(world: object) -> None:
    result = ppap.sample(
        world, ppap.guidance("classifier", target=["red cube", "blue cone"]), steps=2,
        prompt=["a red cube", "a blue cone"],
    )  # fmt: skip
    assert len(result) == 2
    alone = ppap.sample(
        world, ppap.guidance("classifier", target="red cube"), steps=2, num=1, prompt="a red cube"
    )
    gap = (result.tensor[0] - alone.tensor[0]).abs()
    assert gap.mean() < 0.02
    with pytest.raises(OptionError, match="2 values of prompt for 3 images"):
        ppap.sample(world, prompt=["a cube", "a cone"], num=3)


def test_each_seed_makes_what_it_makes_as_image_0(world: object) -> None:
    several = ppap.sample(world, seed=[3, 8], steps=2)
    for k, seed in enumerate((3, 8)):
        alone = ppap.sample(world, seed=seed, steps=2, num=1)
        assert (several.tensor[k] - alone.tensor[0]).abs().max() < 0.02


def test_an_unguided_image_of_the_same_seed_stands_beside(world: object) -> None:
    guide = ppap.guidance(redder_left)
    result = ppap.sample(world, guide, **FAST, unguided=True)
    plain = ppap.sample(world, **FAST)
    for entry, x in zip(result.record["images"], plain.tensor, strict=True):
        expected = float(redder_left(x[None]))
        assert entry["unguided"]["redder_left"]["loss"] == pytest.approx(expected, abs=0.02)
        assert entry["measures"]["redder_left"]["loss"] < expected


def test_guides_that_fight_are_told_from_what_is_measured(world: object) -> None:
    def bluer_left(x0: Tensor) -> Tensor:
        return -redder_left(x0)

    fair = ppap.guidance(redder_left, scale=3)
    weak = ppap.guidance(bluer_left, scale=0.1)
    warned = ppap.sample(world, [fair, weak], **FAST, unguided=True).record["warnings"]
    assert [text for text in warned if "may contradict 'redder_left'" in text]
    alone = ppap.sample(world, fair, **FAST, unguided=True).record["warnings"]
    assert not [text for text in alone if "no better than" in text]
    wrong = ppap.sample(world, ppap.guidance(redder_left, scale=0), **FAST, unguided=True)
    assert [text for text in wrong.record["warnings"] if "Try another --scale" in text]


def test_what_is_given_stays_as_it_was(world: object) -> None:
    module = Brightness().double().train()
    module.weight.requires_grad_(True)
    module.weight.grad = torch.tensor(3.0, dtype=torch.float64)
    ppap.sample(world, ppap.guidance(module), **FAST)
    assert module.training
    assert module.weight.dtype == torch.float64
    assert module.weight.requires_grad
    assert module.weight.grad is not None
    assert float(module.weight.grad) == 3.0
    with pytest.raises(PpapError, match="Unknown device"):
        ppap.sample(world, device="meta", **FAST)


def test_a_guide_serves_any_loop_of_torch() -> None:
    guide = ppap.load_guide("classifier")
    assert isinstance(guide, Guide)
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    target = guide.read_target("red cube", (64, 64)).value
    loss = guide.loss(guide.see(x), target)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.abs().sum() > 0
    # and guides a run as the object that it is
    result = ppap.sample("shapes", ppap.guidance(guide, target="red cube"), steps=2, num=1)
    named = ppap.sample("shapes", ppap.guidance("classifier", target="red cube"), steps=2, num=1)
    assert result.record["images"] == named.record["images"]
    assert result.record["objects"] == []


def test_two_threads_on_one_backbone_give_what_each_gives_alone(world: object) -> None:
    guide = ppap.load_guide("classifier")
    asked = [ppap.guidance(guide, target=label) for label in ("red cube", "blue cone")]
    alone = [ppap.sample(world, g, steps=4, num=1, seed=i) for i, g in enumerate(asked)]
    made: dict[int, ppap.Result] = {}

    def work(i: int) -> None:
        made[i] = ppap.sample(world, asked[i], steps=4, num=1, seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(alone):
        assert made[i].record["images"] == result.record["images"]


def test_many_runs_in_one_process_keep_nothing() -> None:
    small = GaussianBackbone()

    def pull(x: Tensor) -> Tensor:
        return x.square().mean((1, 2, 3))

    def once() -> None:
        ppap.sample(small, ppap.guidance(pull), steps=2, num=1)

    for _ in range(3):
        once()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        once()
    gc.collect()
    assert len(gc.get_objects()) - before < 200


def test_code_steers_when_it_is_named(tmp_path: Path, world: object) -> None:
    code = tmp_path / "my_loss.py"
    code.write_text("def darker(x0):\n    return x0.mean((1, 2, 3))\n")
    result = ppap.sample(
        world, ppap.guidance(f"{code}:darker"), steps=2, num=1, out=tmp_path / "out"
    )
    assert list(result.measures[0]) == ["darker"]
    assert any(name.startswith("darker/") for name in result.record["model_files"])
    with pytest.raises(OptionError, match="would be run"):
        ppap.rerun(tmp_path / "out")
    again = ppap.rerun(tmp_path / "out", guides=ppap.guidance(f"{code}:darker"))
    assert again.record["images"] == result.record["images"]


def test_a_record_says_in_which_number_format_it_was(world: object) -> None:
    half = ppap.load_backbone("shapes", dtype=torch.bfloat16)
    made = ppap.sample(half, num=1, steps=2)
    assert made.record["config"]["dtype"] == "bfloat16"
    assert torch.equal(ppap.rerun(made).tensor, made.tensor)
    with pytest.raises(OptionError, match="is in float32, not in bfloat16"):
        ppap.sample(world, num=1, steps=2, dtype="bfloat16")
    mixed = ppap.sample(half, ppap.guidance("classifier", target="red cube"), num=1, steps=2)
    assert mixed.record["config"]["backbone"] == {"object": "shapes"}


def test_code_that_fails_is_its_authors_fault(tmp_path: Path) -> None:
    code = tmp_path / "my_loss.py"
    code.write_text("def breaks(x0):\n    return x0 / zero\n")
    with pytest.raises(NameError) as caught:
        ppap.sample(GaussianWorld((8, 8)), ppap.guidance(f"{code}:breaks"), **FAST)
    assert "my_loss.py' fails (line 2): NameError" in str(_explained(caught.value))
    code.write_text("raise SystemExit('usage')\n")
    with pytest.raises(OptionError, match="fails: SystemExit: usage"):
        ppap.sample(GaussianWorld((8, 8)), ppap.guidance(f"{code}:breaks"), **FAST)


def test_options_of_a_run_are_known() -> None:
    with pytest.raises(OptionError, match="'sampeler'") as caught:
        ppap.sample("shapes", sampeler="ddim")
    assert "Did you mean 'sampler'?" in caught.value.remedy
    for no_guidance in ([redder_left], redder_left, "depth"):
        with pytest.raises(OptionError, match="Wrap it"):
            ppap.sample("shapes", no_guidance)
    assert RunConfig().sampler is None
