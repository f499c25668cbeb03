"""A target that is like nothing a network was trained on is told of; one that is, is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from worlds import QuadraticGuide

from ppap_host.files.errors import CheckpointError
from ppap_host.files.images import from_tensor, to_tensor
from ppap_host.files.writing import write_png
from ppap_host.guides.familiarity import FILE, Familiarity, learn, load_familiarity, pooled
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry
from ppap_host.runs.config import RunConfig
from ppap_host.runs.run import run
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
GUIDES = ("depth", "segmentation")
"""Whose shipped networks say what they know."""
SIZE = (64, 64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3))


def images(count: int, seed: int, spread: float = 0.3) -> Tensor:
    return spread * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def known(network: nn.Module, limit: float = 2.0) -> Familiarity:
    mean, whitening = learn(lambda x: pooled(network, "maps", x), images(600, 1))
    return Familiarity("maps", mean, whitening, limit, "small noise")


def test_pooled_is_mean_and_standard_deviation_over_positions() -> None:
    network, x = Net(), images(5, 2)
    maps = network.maps(x).double()
    found = pooled(network, "maps", x)
    torch.testing.assert_close(found[:, :8], maps.mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, 8:], maps.flatten(2).std(dim=2, correction=0))


def test_tokens_are_pooled_over_their_number() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(2).transpose(1, 2))

    x = images(4, 3)
    found = pooled(Tokens(), "inner", x)
    torch.testing.assert_close(found[:, :3], x.double().mean(dim=(2, 3)))


def test_the_distance_of_what_was_learnt_is_about_one_and_grows_outside() -> None:
    network = Net()
    familiarity = known(network)
    inside = familiarity.distance(network, images(600, 4))
    # The mean square over features is one by construction, for the learnt images themselves.
    assert float(inside.square().mean()) == pytest.approx(1, rel=0.15)
    assert familiarity.distance(network, images(50, 5, spread=0.9)).min() > 3 * inside.max()


def test_the_distance_is_that_of_mahalanobis() -> None:
    network = Net()
    familiarity = known(network)
    features = pooled(network, "maps", images(600, 1))
    x = images(3, 6)
    off = pooled(network, "maps", x) - features.mean(dim=0)
    covariance = torch.cov(features.T)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(16)
    expected = ((off @ torch.linalg.inv(covariance)) * off).sum(dim=1).div(16).sqrt()
    torch.testing.assert_close(familiarity.distance(network, x), expected)


def test_it_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    network, x = Net(), images(3, 7)
    written = known(network)
    written.save(tmp_path / FILE)
    found = load_familiarity(tmp_path / FILE)
    assert (found.layer, found.limit, found.knows) == ("maps", 2.0, "small noise")
    torch.testing.assert_close(
        found.distance(network, x), written.distance(network, x), rtol=1e-4, atol=1e-4
    )


def _headed(path: Path, text: str, mean: float = 0.0) -> None:
    save_file({"mean": torch.full((3,), mean), "whitening": torch.eye(3)}, path,
              {"familiarity": text})  # fmt: skip


SAYS = '{"layer": "maps", "limit": 1.0, "knows": "x"}'
DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "other": lambda path: save_file({"weight": torch.zeros(2)}, path),
    "shapes": Familiarity("maps", torch.zeros(3), torch.eye(4), 1.0, "").save,
    "a limit that is no number": lambda path: _headed(path, SAYS.replace("1.0", "NaN")),
    "a limit in words": lambda path: _headed(path, SAYS.replace("1.0", '"far"')),
    "brackets without end": lambda path: _headed(path, "[" * 100_000),
    "another key": lambda path: _headed(path, SAYS.replace("knows", "distance")),
    "a mean that is no number": lambda path: _headed(path, SAYS, math.nan),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE
    known(Net()).save(path)
    DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match="Delete it"):
        load_familiarity(path)


def test_a_file_of_another_network_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="no layer 'elsewhere'"):
        pooled(Net(), "elsewhere", images(1, 0))
    with pytest.raises(CheckpointError, match="no maps or tokens"):
        pooled(nn.Sequential(nn.Flatten()), "0", images(1, 0))
    other = Familiarity("maps", torch.zeros(3), torch.eye(3), 1.0, "")
    with pytest.raises(CheckpointError, match="another width"):
        other.distance(Net(), images(1, 0))


class Knowing(QuadraticGuide):
    """A guide whose network lies in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net, self.folder = Net(), folder

    def network(self) -> nn.Module:
        return self.net

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def files(self) -> list[Path]:
        return [self.folder / "model.safetensors"]


def test_any_guide_with_a_file_beside_its_weights_doubts_what_is_far(tmp_path: Path) -> None:
    assert Knowing(tmp_path).doubts(images(1, 8, spread=2), "noise.png") == ()
    known(Net()).save(tmp_path / FILE)
    assert Knowing(tmp_path).doubts(images(1, 8), "noise.png") == ()
    (said,) = Knowing(tmp_path).doubts(images(1, 8, spread=2), "noise.png")
    for part in ("noise.png is like nothing", "'quadratic'", "small noise", "--model", "sheet.png"):
        assert part in said


def test_a_limit_that_nothing_reaches_never_warns(tmp_path: Path) -> None:
    known(Net(), 1e30).save(tmp_path / FILE)
    assert Knowing(tmp_path).doubts(images(1, 8, spread=9), "noise.png") == ()


# The networks that guides ship


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that are no renders: a photograph, noise, a gradient, a flat red one."""
    folder = tmp_path_factory.mktemp("foreign")
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    made = {
        "noise": torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1,
        "stripes": torch.sign(torch.sin(torch.arange(64.0))).expand(1, 3, 64, 64),
        "gradient": ramp,
    }
    for name, x in made.items():
        write_png(folder / f"{name}.png", from_tensor(x)[0])
    return [PHOTOGRAPH, *(folder / f"{name}.png" for name in made)]


@pytest.mark.parametrize("name", GUIDES)
def test_shipped_networks_doubt_pictures_of_other_kinds(name: str, foreign: list[Path]) -> None:
    guide = load_guide(registry(), name)
    for path in foreign:
        doubts = guide.read_target(f"photo:{path}", SIZE).doubts
        (said,) = (doubt for doubt in doubts if "is like nothing" in doubt)
        assert path.name in said and "rendered rooms" in said


@pytest.mark.parametrize("name", GUIDES)
def test_shipped_networks_hardly_ever_doubt_renders(name: str) -> None:
    guide = load_guide(registry(), name)
    rendered = from_tensor(render(sample_scenes(4242, 0, 200)).rgb)
    doubted = [bool(guide.doubts(to_tensor(picture), "x")) for picture in rendered]
    assert sum(doubted) <= 1
    assert guide.familiarity is not None
    measured = guide.familiarity.measured
    assert measured["renders"]["warned of"] <= 0.005
    assert measured["pictures"]["warned of"] >= 0.95
    assert measured["other pictures"]["warned of"] >= 0.95


@pytest.mark.parametrize("name", GUIDES)
def test_what_was_learnt_comes_with_the_network(name: str, tmp_path: Path) -> None:
    guide = load_guide(registry(), name)
    assert (Path(guide.files()[0]).parent / FILE).is_file()


def test_the_warning_is_in_the_record_and_a_render_has_none(tmp_path: Path) -> None:
    write_png(tmp_path / "room.png", from_tensor(render(sample_scenes(7, 0, 1)).rgb)[0])
    told = {}
    for path in (PHOTOGRAPH, tmp_path / "room.png"):
        values = {
            "num": 1, "steps": 1, "recipe": "x0",
            "guide": [{"name": "segmentation", "target": f"photo:{path}"}],
        }  # fmt: skip
        result = run(RunConfig.from_dict(values, "the test"), tmp_path / path.stem)
        told[path.stem] = [w for w in result.record["warnings"] if "is like nothing" in w]
    assert len(told["grace_hopper"]) == 1 and not told["room"]
