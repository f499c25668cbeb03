"""A configuration is one plain object, whatever it came from, and repeats its run."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_host.cli.run import pair_guides
from ppap_host.files.errors import OptionError
from ppap_host.runs.config import GuideConfig, RunConfig, read_toml, refuse_code

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(1, 1_000_000)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
sides = st.lists(number, min_size=2, max_size=2, unique=True).map(sorted)
intervals = st.sampled_from((":", "-1:", ":2")) | sides.map(lambda s: f"{s[0]!r}:{s[1]!r}")
guide_configs = st.builds(
    GuideConfig,
    name=words,
    target=st.none() | text | st.lists(text, min_size=1, max_size=1).map(tuple),
    scale=st.none() | number,
    absolute=st.booleans(),
    model=st.none() | text,
    recipe=st.none() | text,
    experts=st.none() | text,
    interval=st.none() | intervals,
    stage=st.none() | st.sampled_from(["base", "upsampler", "both"]),
    calibration=st.none() | text,
    what=st.none() | text,
)
pictures = st.none() | st.tuples(text, text)
run_configs = pictures.flatmap(
    lambda pair: st.builds(
        RunConfig,
        guides=st.lists(guide_configs, max_size=3).map(tuple),
        backbone=text,
        checkpoint=st.none() | words,
        prompt=text | st.lists(text, min_size=1, max_size=1).map(tuple),
        class_index=st.none() | st.integers(0, 1000),
        backbone_options=st.dictionaries(words, text, max_size=2),
        negative_prompt=text | st.lists(text, min_size=1, max_size=1).map(tuple),
        strength=st.none() | st.floats(0, 1),
        height=st.none() | st.integers(1, 4096),
        width=st.none() | st.integers(1, 4096),
        guidance_scale=st.none() | number,
        pipeline=st.dictionaries(words, text | number, max_size=2),
        image=st.just(pair and pair[0]),
        mask=st.just(pair and pair[1]),
        cfg=st.none() | number,
        recipe=st.none() | text,
        balance=text,
        steps=st.none() | count | words,
        upsampler_steps=st.none() | count | words,
        cfg_interval=st.none() | intervals,
        sampler=st.none() | text,
        eta=st.none() | st.floats(0, 1),
        churn=st.floats(0, 100),
        churn_range=st.none() | text,
        churn_noise=st.floats(0.01, 2),
        seed=st.integers(0, 2**63 - 1) | st.tuples(st.integers(0, 9)),
        num=count,
        batch=st.none() | count,
        device=text,
        dtype=text,
        unguided=st.booleans(),
        quality=st.sampled_from([None, "draft", "normal", "best", "none"]),
    )
)


def test_every_field_is_among_the_drawn_ones() -> None:
    for config, strategy in ((GuideConfig, guide_configs), (RunConfig, run_configs)):
        drawn = repr(strategy)
        for field in dataclasses.fields(config):
            assert f"{field.name}=" in drawn, field.name


def refused(values: dict[str, Any]) -> OptionError:
    with pytest.raises(OptionError) as caught:
        RunConfig.from_dict(values, "room.toml")
    assert caught.value.remedy
    return caught.value


@given(run_configs)
def test_toml_repeats_any_configuration(config: RunConfig) -> None:
    assert RunConfig.from_dict(tomllib.loads(config.to_toml()), "x") == config


@given(run_configs)
def test_a_record_repeats_any_configuration(config: RunConfig) -> None:
    assert RunConfig.from_dict(config.to_dict(), "run.json") == config


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    error = refused({"samplr": "ddim"})
    assert "'samplr' in room.toml" in error.message
    assert "Did you mean 'sampler'?" in error.remedy
    error = refused({"guide": [{"name": "a", "target": "b", "scal": 1}]})
    assert "Did you mean 'scale'?" in error.remedy


def test_a_key_like_nothing_is_answered_with_all() -> None:
    error = refused({"zzzz": 1})
    assert "Did you mean" not in error.remedy
    for field in dataclasses.fields(RunConfig):
        assert field.name in error.remedy or field.name == "guides"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("num", "four", "a valid integer"),
        ("num", 4.0, "a valid integer"),
        ("num", True, "a valid integer"),
        ("num", None, "a valid integer"),
        ("seed", ["x"], "a valid integer"),
        ("eta", "0", "a valid number"),
        ("cfg", False, "a valid number"),
        ("prompt", 7, "a valid string"),
        ("checkpoint", 7, "a valid string"),
        ("steps", 2.5, "a valid integer or a valid string"),
        ("steps", "", "a text that is not empty"),
        ("churn", -1.0, "greater than or equal to 0"),
        ("churn_noise", 0.0, "greater than 0"),
        ("num", 10**12, "less than or equal to"),
        ("unguided", 1, "a valid boolean"),
    ],
)
def test_a_wrong_type_says_which_is_right(key: str, value: Any, wanted: str) -> None:
    error = refused({key: value})
    assert repr(key) in error.message
    assert "room.toml" in error.message
    assert wanted in error.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
@pytest.mark.parametrize("key", ["cfg", "eta", "churn", "churn_noise"])
def test_numbers_are_finite(key: str, value: float) -> None:
    assert refused({key: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True])
def test_every_door_checks(value: Any) -> None:
    for make in (
        lambda: GuideConfig("depth", "room.png", scale=value),
        lambda: RunConfig(cfg=value),
        lambda: dataclasses.replace(RunConfig(), churn=value),
    ):
        with pytest.raises(OptionError):
            make()


def test_a_whole_number_will_do_for_a_float() -> None:
    config = RunConfig.from_dict({"eta": 1}, "x")
    assert isinstance(config.eta, float)


@pytest.mark.parametrize(("key", "value"), [("num", 0), ("batch", 0), ("seed", -1), ("num", -3)])
def test_counts_out_of_range(key: str, value: int) -> None:
    assert f"{key!r} in room.toml is {value}" in refused({key: value}).message


def test_a_guide_needs_a_name() -> None:
    error = refused({"guide": [{"target": "room.png"}]})
    assert "'name'" in error.message
    assert "name = " in error.remedy


def test_lists_have_one_value_an_image() -> None:
    config = RunConfig.from_dict({"prompt": ["a cube", "a cone"], "num": 2}, "x")
    assert config.of_images("prompt", [1]) == ["a cone"]
    error = refused({"prompt": ["a cube", "a cone"], "num": 3})
    assert "2 values of prompt for 3 images" in error.message


def test_code_in_a_file_is_refused_until_it_is_named() -> None:
    config = RunConfig.from_dict({"guide": [{"name": "./evil.py:run"}]}, "run.toml")
    with pytest.raises(OptionError, match="would be run"):
        refuse_code(config, "run.toml")
    refuse_code(config, "run.toml", ["./evil.py:run"])


@pytest.mark.parametrize("tables", ["depth", {"name": "depth"}, ["depth"]])
def test_guides_are_tables(tables: Any) -> None:
    assert "[[guide]]" in refused({"guide": tables}).remedy


def test_guide_and_guides_are_not_both_taken() -> None:
    assert "both" in refused({"guide": [], "guides": []}).message


def test_a_missing_toml_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no file") as caught:
        read_toml(tmp_path / "none.toml")
    assert "--print-config" in caught.value.remedy


@pytest.mark.parametrize(
    "content", [b"num = ", b"\xff\xfe", b"a = 1\na = 2\n", b"a = " + b"9" * 5000]
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"bad\.toml.*is no (valid TOML|text in UTF-8)"):
        read_toml(path)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is a folder"):
        read_toml(tmp_path)


def test_options_pair_with_guides_in_order() -> None:
    both = {"target": ["x", "y"], "scale": [1.0, 2.0], "model": ["m", "n"], "experts": []}
    assert pair_guides(["a", "b"], both) == [
        {"name": "a", "target": "x", "scale": 1.0, "model": "m"},
        {"name": "b", "target": "y", "scale": 2.0, "model": "n"},
    ]
    some = {"target": ["-", "y"], "scale": ["-", 2.0], "model": ["m", "-"]}
    assert pair_guides(["a", "b"], some) == [
        {"name": "a", "model": "m"},
        {"name": "b", "target": "y", "scale": 2.0},
    ]
    assert pair_guides(["a"], {"target": ["x"]}) == [{"name": "a", "target": "x"}]
    assert pair_guides([], {"target": []}) == []


def test_code_of_ones_own_needs_no_target() -> None:
    assert pair_guides(["./mine.py:loss"], {"target": []}) == [
        {"name": "loss", "what": "./mine.py:loss"}
    ]
    assert pair_guides(["a", "mine.py:loss"], {"target": ["x", "-"]}) == [
        {"name": "a", "target": "x"},
        {"name": "loss", "what": "mine.py:loss"},
    ]
    # Whether a guide needs one, it says itself: rewards do not.
    assert pair_guides(["a"], {"target": []}) == [{"name": "a"}]


@pytest.mark.parametrize(
    ("guides", "targets", "scales", "models", "said"),
    [
        (["a", "b"], ["x"], [], [], "--guide b --target ???"),
        (["a"], ["x", "y"], [], [], "--guide ??? --target y"),
        ([], ["x"], [], [], "--guide ??? --target x"),
        (["a", "b"], ["x", "y"], [1.0], [], "--guide b --scale ???"),
        (["a"], ["x"], [], ["m", "n"], "--guide ??? --model n"),
        ([], [], [2.0], [], "--guide ??? --scale 2.0"),
    ],
)
def test_a_mismatch_shows_what_was_understood(
    guides: list[str], targets: list[str], scales: list[float], models: list[str], said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        pair_guides(guides, {"target": targets, "scale": scales, "model": models})
    assert said in caught.value.message
    assert "same order" in caught.value.remedy


FILE = """
steps = "ddim25"
seed = 7
prompt = "a red cube"

[[guide]]
name = "depth"
target = "room.png"
scale = 2
recipe = "naive"
"""


def printed(outcome: Any) -> RunConfig:
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return RunConfig.from_dict(tomllib.loads(outcome.out), "printed")


def test_options_go_before_the_file(ppap_here: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FILE)
    config = printed(ppap_here("run", "-c", "run.toml", "--seed", "8", "--print-config"))
    assert (config.seed, config.steps, config.prompt) == (8, "ddim25", "a red cube")
    assert config.guides == (GuideConfig("depth", "room.png", 2.0, recipe="naive"),)


def test_options_that_equal_the_default_still_go_before_the_file(
    ppap_here: Any, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(FILE)
    arguments = ("--seed", "0", "--steps", "50", "--prompt", "")
    config = printed(ppap_here("run", "-c", "run.toml", *arguments, "--print-config"))
    assert (config.seed, config.steps, config.prompt) == (0, 50, "")


def test_guides_of_the_command_line_replace_those_of_the_file(
    ppap_here: Any, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(FILE)
    config = printed(ppap_here("run", "-c", "run.toml", "-g", "c", "-t", "5", "--print-config"))
    assert config.guides == (GuideConfig("c", "5"),)


def test_print_config_repeats_the_run(ppap_here: Any, tmp_path: Path) -> None:
    guides = ("-g", "depth", "-t", "a b.png", "-s", "1.5", "-m", "net", "-g", "c", "-t", 'say "x"')
    others = ("-s", "0.1", "-m", "", "--cfg", "3", "-p", "ein Würfel", "--steps", "10,10")
    first = ppap_here("run", *guides, *others, "--eta", "0.3", "-n", "2", "--print-config")
    config = printed(first)
    assert config.guides[1] == GuideConfig("c", 'say "x"', 0.1, "")
    assert (config.cfg, config.steps, config.eta, config.num) == (3.0, "10,10", 0.3, 2)
    (tmp_path / "again.toml").write_text(first.out, encoding="utf-8")
    assert printed(ppap_here("run", "-c", "again.toml", "--print-config")) == config


def test_print_config_makes_nothing(ppap_here: Any, tmp_path: Path) -> None:
    printed(ppap_here("run", "--out", "here", "--print-config"))
    assert list(tmp_path.iterdir()) == []
