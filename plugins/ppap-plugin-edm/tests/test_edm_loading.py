"""Files are read as data: honest ones whole, all others refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppap_plugin_edm import convert
from ppap_plugin_edm.backbone import EDMBackbone
from ppap_plugin_edm.checkpoint import Snapshot, load, make, read, save
from ppap_plugin_edm.preconditioning import PRECONDITIONINGS, Denoiser
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.files.pickles import Call, RefusedError, read_pickle, read_storage

SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1, 2],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [4],
}
HOSTILE_SOURCE = "open('was_run', 'w').close()"


# Files as torch_utils.persistence writes them


class Persistent:
    """Is pickled as an object of a decorated class: its state, and the source of its module."""

    def __init__(self, class_name: str, state: Mapping[str, Any]) -> None:
        self.class_name, self.state = class_name, dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = {
            "type": "class",
            "version": 6,
            "module_src": HOSTILE_SOURCE,
            "class_name": self.class_name,
            "state": self.state,
        }
        return rebuild, (meta,)


@pytest.fixture(autouse=True)
def persistence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module whose function such files name, as far as a writer needs it."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("a reader has called what the file names")

    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def persistent(module: nn.Module, **extra: Any) -> Any:
    """The object graph of a module in the published form, with these further attributes."""
    state = {k: v for k, v in vars(module).items() if k.startswith("_") and k[1:] in STATE}
    state["_modules"] = {name: persistent(part) for name, part in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        # Not of the original's own classes: pickled as itself.
        plain = nn.ModuleDict()
        vars(plain).update(state)
        return plain
    return Persistent(type(module).__name__, {"training": False, **state, **extra})


STATE = {"parameters", "buffers", "modules", "non_persistent_buffers_set", "forward_hooks"}


def snapshot_of(network: Denoiser, **arguments: Any) -> dict[str, Any]:
    """What the original training loop saves."""
    ema = persistent(network, _init_args=(), _init_kwargs=arguments, img_channels=3)
    return {"ema": ema, "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None}


def written(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.fixture(scope="module")
def small() -> Denoiser:
    torch.manual_seed(0)
    return make("EDMPrecond", **SMALL)


@pytest.fixture
def honest(tmp_path: Path, small: Denoiser) -> Path:
    return written(tmp_path / "edm.pkl", snapshot_of(small, **SMALL))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What is read


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("class_name", list(PRECONDITIONINGS))
def test_an_honest_file_gives_the_network_it_was_written_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    network = make(class_name, **SMALL)
    path = written(tmp_path / "edm.pkl", snapshot_of(network, **SMALL), protocol)
    loaded = load(path)
    assert type(loaded) is type(network)
    assert same_weights(loaded, network)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(0.7)
    assert torch.equal(loaded(x, sigma), network(x, sigma))
    assert [file.name for file in tmp_path.iterdir()] == ["edm.pkl"], "the source was run"


@pytest.mark.parametrize(
    "extra",
    [
        {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
        {"encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
        {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 2, 2]},
        {"label_dim": 5, "augment_dim": 9},
        {"model_type": "DhariwalUNet", "label_dim": 5, "augment_dim": 9},
        {"model_type": "DhariwalUNet", "model_channels": 64, "attn_resolutions": [8, 4]},
    ],
    ids=lambda extra: "-".join(map(str, extra)),
)
def test_every_kind_of_network_is_read_and_runs(tmp_path: Path, extra: dict[str, Any]) -> None:
    arguments = SMALL | extra
    network = make("EDMPrecond", **arguments)
    loaded = load(written(tmp_path / "edm.pkl", snapshot_of(network, **arguments)))
    assert same_weights(loaded, network)
    x = torch.randn(2, 3, 8, 8).requires_grad_(True)
    labels = torch.eye(5)[:2] if "label_dim" in extra else None
    augment = torch.ones(2, 9) if "augment_dim" in extra else None
    out = loaded(x, torch.tensor([0.1, 40.0]), labels, augment)
    assert out.shape == x.shape and out.isfinite().all()
    (gradient,) = torch.autograd.grad(out[0].sum(), x)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0
    plain = loaded(x, torch.tensor([0.1, 40.0]))
    assert torch.equal(plain, out) == (labels is None and augment is None)


def test_arguments_may_be_recorded_by_position(tmp_path: Path, small: Denoiser) -> None:
    rest = {k: v for k, v in SMALL.items() if k not in ("img_resolution", "img_channels")}
    ema = persistent(small, _init_args=(8, 3, 0, False), _init_kwargs=rest)
    assert same_weights(load(written(tmp_path / "edm.pkl", {"ema": ema})), small)


def test_networks_come_frozen_and_in_evaluation_mode(honest: Path) -> None:
    network = load(honest)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_half_precision_files_load_as_float32(tmp_path: Path, small: Denoiser) -> None:
    half = make("EDMPrecond", **SMALL)
    half.load_state_dict(small.state_dict())
    path = written(tmp_path / "edm.pkl", snapshot_of(half.half(), **SMALL))
    assert {tensor.dtype for tensor in load(path).state_dict().values()} == {torch.float32}


def test_a_converted_file_is_the_same_network(
    tmp_path: Path, honest: Path, small: Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "converted.safetensors"
    assert convert.main([str(honest), str(target)]) == 0
    assert same_weights(load(target), small)
    assert EDMBackbone(str(target)).files() == (target, target.with_suffix(".json"))
    assert EDMBackbone(str(honest)).files() == (honest,)
    honest.write_bytes(honest.read_bytes()[:1000])
    assert convert.main([str(honest), str(target)]) == 2
    assert "cut short" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", "[]", '{"class": 3, "init_kwargs": {}}'])
def test_a_converted_file_needs_its_configuration(
    tmp_path: Path, small: Denoiser, text: str | None
) -> None:
    path = tmp_path / "model.safetensors"
    save(Snapshot("EDMPrecond", SMALL, small.state_dict()), path)
    assert json.loads(path.with_suffix(".json").read_text())["class"] == "EDMPrecond"
    path.with_suffix(".json").unlink()
    if text is not None:
        path.with_suffix(".json").write_text(text)
    assert "configuration" in refusal(path).message or "model.json" in refusal(path).message


def stored(form: str, numbers: Tensor) -> bytes:
    """A storage as torch writes it within a pickle."""
    buffer = io.BytesIO()
    torch.save(numbers._typed_storage(), buffer, _use_new_zipfile_serialization=form == "zip")  # type: ignore[no-untyped-call]
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["old", "zip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_both_formats_of_storages_are_read(form: str, dtype: torch.dtype) -> None:
    numbers = torch.arange(5).to(dtype)
    assert torch.equal(read_storage(stored(form, numbers)), numbers)
    assert read_storage(stored(form, numbers[:0].clone())).shape == (0,)


@pytest.mark.parametrize(
    ("millions", "arguments"),
    [
        (55.7, {"img_resolution": 32, "channel_mult": [2, 2, 2]}),
        (61.8, {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}),
        (295.9, {"img_resolution": 64, "model_type": "DhariwalUNet", "label_dim": 1000}),
    ],
    ids=["cifar10-uncond-vp", "ffhq-uncond-vp", "imagenet-cond-adm"],
)
def test_the_published_settings_give_networks_of_the_published_sizes(
    millions: float, arguments: dict[str, Any]
) -> None:
    if "model_type" not in arguments:
        arguments = {"model_type": "SongUNet", "augment_dim": 9, **arguments}
    with torch.device("meta"):
        network = make("EDMPrecond", img_channels=3, **arguments)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


# What is refused: files


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in caught.value.message or str(path.with_suffix(".json")) in str(caught.value)
    assert caught.value.remedy
    return caught.value


def test_without_a_checkpoint_there_is_no_backbone() -> None:
    with pytest.raises(CheckpointError, match="without weights") as caught:
        EDMBackbone(None)
    assert "--checkpoint" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 an archive", "neither a pickle"),
        (b"\x80\x04", "cut short"),
        (b"\x80\x04]\x94.", "it holds list"),
        (b"\x80\x04}\x94(\x8c\x01G\x94K\x01\x8c\x04G_em\x94K\x02u.", "it holds G, G_em"),
        (b"\x80\x04}\x94\x8c\x03ema\x94K\x01s.", "where a network should be"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "edm.pkl"
    path.write_bytes(content)
    assert words in refusal(path).message


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(honest: Path, keep: float) -> None:
    honest.write_bytes(honest.read_bytes()[: int(keep * honest.stat().st_size)])
    assert "cut short" in refusal(honest).message


class Hostile:
    """Unpickling this would create a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("was_run", "w")


@pytest.mark.parametrize("place", ["ema", "loss_fn", "dataset_kwargs", "within"])
def test_nothing_is_run_wherever_it_is(
    tmp_path: Path, small: Denoiser, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = snapshot_of(small, **SMALL)
    if place == "within":
        content["ema"].state["hook"] = Hostile()
    else:
        content[place] = Hostile()
    error = refusal(written(tmp_path / "edm.pkl", content))
    assert "open" in error.message and "nothing in it was run" in error.message
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("form", ["old", "zip"])
def test_nothing_is_run_in_a_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(Hostile(), buffer, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(RefusedError, match="open"):
        read_storage(buffer.getvalue())
    assert not (tmp_path / "was_run").exists()


def test_a_compressed_storage_cannot_fill_the_memory() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/data/0", bytes(10**7))
    with pytest.raises(RefusedError, match="larger"):
        read_storage(buffer.getvalue())


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    network = make("EDMPrecond", **SMALL)
    layer = network.model.map_layer0
    assert isinstance(layer, nn.Linear)
    layer.weight = nn.Parameter(torch.zeros(1, 1).expand(10**6, 10**6))
    path = written(tmp_path / "edm.pkl", snapshot_of(network, **SMALL))
    assert "larger than its storage" in refusal(path).message


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04]" + b"\x85" * 100_000 + b".",
        b"\x80\x04}]" + b"\x85" * 100_000 + b"Ns.",
        b"\x80\x04]\x94" + b"h\x00\x86" * 60 + b".",
        b"\x80\x04}r\xff\xff\xff\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"\x80\x04h\x07.",
        b"\x80\x04.",
        b"\x80\x04\x88Q.",
    ],
    ids=range(10),
)
def test_pickles_made_to_break_readers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edm.pkl"
    path.write_bytes(content)
    refusal(path)


def test_a_module_within_itself_is_refused(tmp_path: Path, small: Denoiser) -> None:
    inner = Persistent("Linear", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    ema = persistent(small, _init_args=(), _init_kwargs=SMALL)
    ema.state["_modules"] |= {"a": inner, "b": inner}
    assert "two places" in refusal(written(tmp_path / "edm.pkl", {"ema": ema})).message


def test_calls_stay_calls() -> None:
    content = pickle.dumps({"x": Hostile()}, protocol=4)
    value = read_pickle(io.BytesIO(content), {"io.open", "_io.open"})
    assert isinstance(value["x"], Call)
    assert value["x"].arguments == ("was_run", "w")


# What is refused: networks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_channels": 8}, "of another shape"),
        ({"num_blocks": 2}, "missing"),
        ({"channel_mult": [1]}, "unexpected"),
        ({"label_dim": 10}, "map_label.weight"),
        ({"model_channels": 10**9}, "cannot be meant"),
        ({"model_channels": 10**5000}, "cannot be meant"),
        ({"model_channels": True}, "cannot be meant"),
        ({"model_channels": 3}, "describe no"),
        ({"num_blocks": 10**6}, "cannot be meant"),
        ({"img_resolution": 9}, "cannot have 2 levels"),
        ({"channel_mult": []}, "cannot have 0 levels"),
        ({"channel_mult": [1] * 10**5}, "cannot be meant"),
        ({"sigma_data": float("nan")}, "cannot be meant"),
        ({"model_type": "VGG"}, "cannot be meant"),
        ({"encoder_type": ["skip"]}, "cannot be meant"),
        ({"z_dim": 512}, "not known here"),
        ({"img_resolution": None}, "cannot be meant"),
        ({"C_1": 0.1}, "describe no"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, small: Denoiser, changes: dict[str, Any], words: str
) -> None:
    path = written(tmp_path / "edm.pkl", snapshot_of(small, **SMALL | changes))
    assert words in refusal(path).message


def test_the_first_differences_are_named(tmp_path: Path) -> None:
    network = make("EDMPrecond", **SMALL)
    del network.model.map_layer1._parameters["bias"]
    path = written(tmp_path / "edm.pkl", snapshot_of(network, **SMALL))
    assert "1 missing: model.map_layer1.bias (4,)" in refusal(path).message


def test_other_networks_of_the_same_format_are_named(tmp_path: Path, small: Denoiser) -> None:
    ema = persistent(small, _init_args=(), _init_kwargs={})
    ema.class_name = "Generator"
    error = refusal(written(tmp_path / "stylegan.pkl", {"ema": ema}))
    assert "'Generator'" in error.message and "EDMPrecond" in error.message
    error = refusal(written(tmp_path / "stylegan.pkl", {"G_ema": ema}))
    assert "no network under 'ema'" in error.message


# Anything at all


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Files like ``content`` with bytes changed, cut out or put in, or the end missing."""
    position = st.integers(0, len(content) - 1)

    def changed(edits: list[tuple[int, int, bytes]], end: int) -> bytes:
        mutated = bytearray(content)
        for at, removed, inserted in edits:
            mutated[at : at + removed] = inserted
        return bytes(mutated[: end or None])

    edit = st.tuples(position, st.integers(0, 9), st.binary(max_size=9))
    end = st.one_of(st.just(0), position)
    return st.builds(changed, st.lists(edit, min_size=1, max_size=6), end)


def only_checkpoint_errors(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # Whatever else it raises fails the test.
    with contextlib.suppress(CheckpointError):
        assert isinstance(load(path), Denoiser)


def fuzzed(content: bytes, path: Path, examples: int) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, database=None)
    @given(mutations(content))
    def check(mutated: bytes) -> None:
        only_checkpoint_errors(path, mutated)

    return check


def test_whatever_is_done_to_a_file_only_a_checkpoint_error_comes_out(
    tmp_path: Path, honest: Path
) -> None:
    """The edits fall everywhere; most of the file is the tensors' own pickles."""
    fuzzed(honest.read_bytes(), tmp_path / "mutated.pkl", 60)()


def test_edits_of_the_structure_also_end_in_checkpoint_errors(
    tmp_path: Path, small: Denoiser
) -> None:
    """Without tensors the whole file is structure."""
    empty = Persistent("EDMPrecond", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    empty.state |= {"_init_args": (), "_init_kwargs": SMALL}
    fuzzed(pickle.dumps({"ema": empty}, protocol=4), tmp_path / "mutated.pkl", 150)()


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.lists(
        st.sampled_from(
            [
                bytes([code])
                for code in b"()]}tlds0212.N\x88\x89Rb\x81\x85\x86\x87\x94ueaq\x8f\x90\x91"
            ]
            + [
                b"K\x05",
                b"\x8c\x03ema",
                b"\x8c\x05state",
                b"h\x00",
                b"h\x01",
                b"B\x02\x00\x00\x00ab",
            ]
            + [b"\x8c\x17torch_utils.persistence\x8c\x1b_reconstruct_persistent_obj\x93"]
            + [b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93"]
        ),
        max_size=40,
    )
)
def test_any_program_ends_in_a_value_or_an_error(codes: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        only_checkpoint_errors(Path(folder) / "edm.pkl", b"\x80\x04" + b"".join(codes) + b".")


def test_damaged_storages_are_refused() -> None:
    blob = stored("old", torch.arange(4.0))
    for changed, words in (
        (blob[:-1], "has 15 bytes"),
        (blob + b"\0", "has 17 bytes"),
        (blob[:-24] + struct.pack("<q", 5) + blob[-16:], "two sizes"),
    ):
        with pytest.raises(RefusedError, match=words):
            read_storage(changed)


def test_a_snapshot_says_how_the_network_was_made(honest: Path) -> None:
    snapshot = read(honest)
    assert snapshot.class_name == "EDMPrecond"
    assert snapshot.arguments == SMALL
