"""Plugins that work but do not behave: nobody else notices, and each is named."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environments import Environment, build_wheel
from PIL import Image, ImageFile
from torch import Tensor, nn

from conftest import Call
from ppap_host.cli.surroundings import for_results_alone
from ppap_host.files.errors import PluginWarning
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.containment import SETTINGS, contained
from ppap_host.plugins.loading import Guarded
from ppap_host.plugins.registry import Registry

PLAIN = """\
from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1

@hookimpl
def ppap_guides():
    return [Entry("{name}", "{module}_guide:Guide", "a guide")]
"""
GUIDE = """\
import torch
from PIL import Image
from ppap_host.guides.guide import Guide as Base
from ppap_host.guides.targets import Target
from ppap_host.files.images import from_tensor

class Guide(Base):
    name = "{name}"
    default_scale = {{"": 1.0}}

    def __init__(self, model=None):
        {made}
        self._network = torch.nn.Identity()

    def network(self):
        return self._network

    def understand(self, given, size):
        return Target(given.words, torch.zeros(1, 3, *size))

    def prepare(self, x):
        {asked}
        return x

    def loss(self, output, target):
        return (output - target).square().flatten(1).mean(1)

    distance = loss

    def picture(self, output):
        return from_tensor(output)

    def measure(self, output, target):
        return {{"difference": self.loss(output, target).tolist()}}
"""
COMMAND = """\
import typer

app = typer.Typer(rich_markup_mode=None)

@app.command()
def duel(times: int = 1) -> None:
    print("bang " * (12 // times))
"""
IMPORTED = {
    "loud": "print('Welcome!')",
    "doubles": "import torch; torch.set_default_dtype(torch.float64); torch.set_num_threads(3)",
    "silences": "import random, warnings; warnings.simplefilter('ignore'); random.seed(0)",
    "deaf": "import signal; signal.signal(signal.SIGINT, lambda *_: None)",
    "single": "import os; os.environ['MKL_NUM_THREADS'] = '7'; os.chdir('/')",
    "chatty": "import logging; logging.basicConfig(level=logging.DEBUG)",
    "unsafe": "import functools, torch; torch.load = functools.partial(torch.load, mmap=True)",
}  # fmt: skip
UNDONE = {
    "loud": "prints to standard output ('Welcome!'), which went to standard error",
    "doubles": "changes the default dtype of torch, the thread count of torch, which was undone",
    "silences": "changes the warning filters, the random generator of Python, which was undone",
    "deaf": "changes the handler of Ctrl-C, which was undone",
    "single": "changes the working directory, "
    "environment variables of the number of threads and devices, which was undone",
    "chatty": "changes the root logger, which was undone",
    "unsafe": "changes torch.load, which was undone",
}
MADE = {"makes": "print('made'); torch.set_grad_enabled(False); torch.manual_seed(0)"}
SETS = """\
from pathlib import Path
from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1

@hookimpl
def ppap_expert_sets():
    names = ("raises", "nothing", "nowhere", "leaves")
    return [Entry(f"aaa-{name}", f"ppap_x_aaa_sets:{name}", "a set") for name in names]

def raises():
    print("a set")
    raise KeyError("moon")

def nothing():
    pass

def nowhere():
    return Path("/nowhere/set.safetensors")

def leaves():
    raise SystemExit(0)
"""
BACKBONE = """\
import sys
import torch
from ppap_host.backbones.backbone import Prediction
from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_host.recipes.presets import X0
from dataclasses import dataclass, replace

ppap_interface = 1

@hookimpl
def ppap_backbones():
    names = ("chatty", "leaving", "silent")
    return [Entry(f"{n}-world", f"ppap_x_worlds:{n}", "a backbone") for n in names]

@hookimpl
def ppap_recipes():
    return [Entry("printing", "ppap_x_worlds:PRINTING", "a recipe"),
            Entry("wrong", "ppap_x_worlds:chatty", "no recipe")]

def world(checkpoint, predict):
    from ppap_host.testing import GaussianWorld
    made = GaussianWorld((16, 16))
    own = made.predict
    made.predict = lambda x, level, condition: predict(own(x, level, condition))
    return made

def chatty(checkpoint=None):
    def predict(prediction):
        print("PREDICTING")
        torch.set_default_dtype(torch.float64)
        return prediction
    return world(checkpoint, predict)

def leaving(checkpoint=None):
    return world(checkpoint, lambda prediction: sys.exit(0))

def silent(checkpoint=None):
    return world(checkpoint, lambda prediction: None)

@dataclass(frozen=True)
class Loud:
    def __call__(self, gradient, estimate):
        print("PULLING")
        return gradient

PRINTING = replace(X0, name="printing", gradient=(Loud(),))
"""
ASKED = {
    "asks": "print('asked'); torch.set_default_dtype(torch.float64); torch.manual_seed(0)",
    "fails": "raise RuntimeError('no\\n moon')",
}


@pytest.fixture(scope="module")
def rude(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment in which all of them are installed."""
    wheels = tmp_path_factory.mktemp("wheels")
    environment = Environment.make(tmp_path_factory.mktemp("rude") / "env")

    def install(name: str, modules: dict[str, str], points: dict[str, dict[str, str]]) -> None:
        environment.install(build_wheel(wheels, f"ppap-x-{name}", modules, points))

    for name in (*IMPORTED, *MADE, *ASKED):
        module = f"ppap_x_{name}"
        source = f"{IMPORTED.get(name, '')}\n{PLAIN.format(name=name, module=module)}"
        made, asked = MADE.get(name, "pass"), ASKED.get(name, "pass")
        guide = GUIDE.format(name=name, made=made, asked=asked)
        modules = {f"{module}.py": source, f"{module}_guide.py": guide}
        install(name, modules, {"ppap": {name: module}})
    for name in ("rival", "second"):
        points = {"run": f"ppap_x_{name}:app", "duel": f"ppap_x_{name}:app"}
        install(name, {f"ppap_x_{name}.py": COMMAND}, {"ppap.commands": points})
    install("aaa-sets", {"ppap_x_aaa_sets.py": SETS}, {"ppap": {"aaa": "ppap_x_aaa_sets"}})
    install("worlds", {"ppap_x_worlds.py": BACKBONE}, {"ppap": {"worlds": "ppap_x_worlds"}})
    install("noapp", {"ppap_x_noapp.py": COMMAND}, {"ppap.commands": {"noapp": "ppap_x_noapp"}})
    install("only", {"ppap_x_only.py": COMMAND}, {"ppap.commands": {"shoot": "ppap_x_only:app"}})
    return environment


@pytest.fixture(scope="module")
def listed(rude: Environment) -> dict[str, list[dict[str, Any]]]:
    """What ``ppap list --json`` says there; its standard output is JSON and nothing else."""
    outcome = rude.ppap("list", "--json")
    assert (outcome.code, outcome.err) == (0, "Welcome!\n")
    return json.loads(outcome.out)


@pytest.mark.parametrize("name", IMPORTED)
def test_what_an_import_does_to_the_process_is_undone_and_named(
    listed: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (plugin,) = [p for p in listed["plugin"] if p["name"] == name]
    assert plugin["status"] in ("warning", "slow")
    assert UNDONE[name] in plugin["reason"]
    assert plugin["reason"].endswith("when it is imported")
    assert name in [g["name"] for g in listed["guide"]]


def test_after_all_imports_the_process_is_as_it_was(rude: Environment) -> None:
    state = """
        import json, os, random, signal, warnings, logging, torch
        {before}
        print(json.dumps([
            str(torch.get_default_dtype()), torch.get_num_threads(), torch.load.__name__,
            str(signal.getsignal(signal.SIGINT)), os.environ.get("MKL_NUM_THREADS"),
            os.getcwd(), len(logging.root.handlers), logging.root.level,
            [f[0] for f in warnings.filters if f[2] is Warning and f[1] is None],
        ]))
    """
    registered = "from ppap_host.plugins.registry import registry; registry()"
    found = [rude.evaluate(state.format(before=code)) for code in ("", registered)]
    assert json.loads(found[0]) == json.loads(found[1])


@pytest.fixture(scope="module")
def runs(rude: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What short runs say, by guide."""
    folder = tmp_path_factory.mktemp("runs")
    guided = ("--guide", "asks", "--target", "x")
    options = {
        **{name: ("--guide", name, "--target", "x") for name in ("makes", "asks", "fails")},
        **{name: ("-b", f"{name}-world") for name in ("chatty", "leaving", "silent")},
        "printing": (*guided, "-r", "printing"),
        "wrong": (*guided, "-r", "wrong"),
        "sets": ("--guide", "classifier", "--target", "red cube"),
    }
    calls = [
        ("run", *given, *(() if "-r" in given or name in ("sets",) else ("-r", "x0")),
         "--num", "1", "--steps", "2", "--json", "--out", str(folder / name))
        for name, given in options.items()
    ]  # fmt: skip
    return dict(zip(options, rude.ppap_in_turn(*calls), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("makes", "when it is made, prints to standard output ('made'), which went to standard "
         "error; changes whether torch records gradients, which was undone"),
        ("asks", "asked for see(), prints to standard output ('asked'), which went to standard "
         "error; changes the default dtype of torch, which was undone"),
    ],
)  # fmt: skip
def test_a_guide_that_meddles_is_named_and_the_run_goes_on(
    runs: dict[str, Any], name: str, what: str
) -> None:
    outcome = runs[name]
    assert outcome.code == 0
    assert json.loads(outcome.out)["status"] == "complete"
    warned = " ".join(outcome.err.split())
    assert f"Warning: The guide {name!r} of ppap-x-{name} 1.0, {what}." in warned


@pytest.mark.slow
def test_a_guide_that_raises_while_it_guides_is_named(runs: dict[str, Any]) -> None:
    outcome = runs["fails"]
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    assert "The plugin ppap-x-fails 1.0 fails (ppap_x_fails_guide, line " in said
    assert "in prepare): RuntimeError: no moon. This is a fault of the plugin" in said


@pytest.mark.slow
def test_a_backbone_that_meddles_is_named_and_the_run_goes_on(runs: dict[str, Any]) -> None:
    outcome = runs["chatty"]
    assert (outcome.code, json.loads(outcome.out)["status"]) == (0, "complete")
    said = " ".join(outcome.err.split())
    assert "The backbone 'gaussian-world' of ppap-x-worlds 1.0, asked for predict(), prints" in said
    assert "changes the default dtype of torch, which was undone" in said


@pytest.mark.slow
def test_a_recipe_that_prints_is_named_and_the_run_goes_on(runs: dict[str, Any]) -> None:
    outcome = runs["printing"]
    assert (outcome.code, json.loads(outcome.out)["status"]) == (0, "complete")
    assert "The recipe 'printing', or a gradient of what it is used with, prints" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("leaving", "RuntimeError: it calls sys.exit(0)"),
        ("silent", "The backbone 'gaussian-world' of ppap-x-worlds 1.0 returns a NoneType from "
         "predict(), not a Prediction"),
        ("wrong", "The recipe 'wrong' of ppap-x-worlds 1.0 is a function, not a Recipe"),
    ],
)  # fmt: skip
def test_what_ends_a_run_is_named(runs: dict[str, Any], name: str, said: str) -> None:
    outcome = runs[name]
    assert (outcome.code, outcome.out) == (2, "")
    assert said in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
    assert "ppap-x-worlds" in outcome.err


@pytest.mark.slow
def test_broken_expert_sets_of_one_plugin_leave_the_guides_of_others_alone(
    runs: dict[str, Any],
) -> None:
    outcome = runs["sets"]
    record = json.loads(outcome.out)
    assert (outcome.code, record["status"]) == (0, "complete")
    assert record["used"]["guides"][0]["experts"] == "classifier-shapes-5"
    for name in ("raises", "nothing", "nowhere", "leaves"):
        assert f"'aaa-{name}' of ppap-x-aaa-sets 1.0" in outcome.err


def test_a_command_that_is_no_application_is_named(rude: Environment) -> None:
    outcome = rude.ppap("noapp")
    assert (outcome.code, outcome.out) == (2, "")
    assert "The command 'noapp' of ppap-x-noapp is a module" in outcome.err
    assert "my_plugin.cli:app" in outcome.err


def test_what_a_child_process_prints_is_no_result(rude: Environment) -> None:
    code = (
        "import os, sys; from ppap_host.cli import main; import ppap_host.cli.list as l\n"
        "real = l.print_json\n"
        "l.print_json = lambda value: (os.system('echo from a child'), real({}))\n"
        "sys.argv = ['ppap', 'list', '--json']; main()"
    )
    done = subprocess.run(
        [rude.python, "-c", code], capture_output=True, text=True, check=True, cwd=rude.folder
    )
    assert done.stdout == "{}\n"
    assert "from a child" in done.stderr


@pytest.mark.parametrize("error", [OSError("full"), ValueError("odd"), AttributeError("none")])
def test_an_error_while_results_are_kept_apart_is_the_same_error(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught, for_results_alone():
        raise error
    assert caught.value is error
    code = (
        "from ppap_host.cli.surroundings import for_results_alone\n"
        "try:\n"
        "    with for_results_alone():\n"
        "        print('result')\n"
        "        raise OSError('full')\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\nfull\n", "")


def test_no_plugin_replaces_a_command_of_the_host(
    rude: Environment, listed: dict[str, list[dict[str, Any]]]
) -> None:
    assert "--guide" in rude.ppap("run", "--help").out
    (row,) = [c for c in listed["command"] if c["name"] == "run"]
    assert row["from"] == ["ppap-x-rival", "ppap-x-second"]
    assert row["summary"].startswith("unusable")


def test_a_command_of_two_plugins_names_both(rude: Environment) -> None:
    outcome = rude.ppap("duel")
    assert (outcome.code, outcome.out) == (2, "")
    assert "The command 'duel' is claimed by ppap-x-rival and ppap-x-second." in outcome.err


def test_leaving_one_out_makes_the_other_one_usable(
    rude: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPAP_WITHOUT", "ppap-x-rival, loud")
    outcome = rude.ppap("duel", "--times", "4")
    assert (outcome.code, outcome.out) == (0, "bang bang bang \n")
    rows = {p["name"]: p for p in json.loads(rude.ppap("list", "--json").out)["plugin"]}
    assert rows["loud"]["status"] == "left out"
    assert "PPAP_WITHOUT" in rows["loud"]["reason"]
    assert rows["deaf"]["status"] == "warning"


def test_a_command_that_raises_is_named(rude: Environment) -> None:
    outcome = rude.ppap("shoot", "--times", "0")
    assert outcome.code == 2
    assert "The plugin ppap-x-only fails (ppap_x_only, line " in outcome.err
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" in rude.ppap("--debug", "shoot", "--times", "0").err


@pytest.mark.slow
def test_doctor_names_names_claimed_twice_and_plugins_that_are_not_there(
    rude: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPAP_WITHOUT", "moon")
    found = {f["topic"]: f for f in json.loads(rude.ppap("doctor", "--json").out)}
    assert found["command duel"]["detail"] == "claimed by ppap-x-rival and ppap-x-second"
    assert "ppap-host" in found["command run"]["detail"]
    assert found["PPAP_WITHOUT"]["detail"] == "'moon' is no plugin that is installed"
    assert found["plugin loud"]["status"] == "warning"


# The containment alone


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Puts everything back that a test changes on purpose, whatever comes of it."""
    before = {setting.what: setting.read() for setting in SETTINGS}
    yield
    for setting in SETTINGS:
        if not setting.same(before[setting.what], setting.read()):
            setting.restore(before[setting.what])


CHANGES: dict[str, Callable[[], object]] = {
    "the warning filters": lambda: warnings.simplefilter("ignore"),
    "the handler of Ctrl-C": lambda: signal.signal(signal.SIGINT, lambda *_: None),
    "the working directory": lambda: os.chdir(os.sep),
    "environment variables of the number of threads and devices": lambda: os.environ.update(
        CUDA_VISIBLE_DEVICES="7"
    ),
    "the root logger": lambda: logging.root.setLevel(3),
    "which messages are logged at all": lambda: logging.disable(logging.ERROR),
    "what is done with uncaught errors": lambda: setattr(sys, "excepthook", print),
    "which images Pillow reads": lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "automatic mixed precision": lambda: torch.set_autocast_enabled("cpu", True),
    "the random generator of Python": random.random,
    "the random generator of numpy": np.random.random,
    "the error handling of numpy": lambda: np.seterr(all="raise"),
    "the random generator of torch": lambda: torch.rand(1),
    "the default dtype of torch": lambda: torch.set_default_dtype(torch.float16),
    "the default device of torch": lambda: torch.set_default_device("meta"),
    "the thread count of torch": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "whether torch records gradients": lambda: torch.set_grad_enabled(False),
    "whether torch is deterministic": lambda: torch.use_deterministic_algorithms(True),
    "the precision of torch's matrix products": lambda: torch.set_float32_matmul_precision(
        "medium"
    ),
    "how cuDNN chooses algorithms": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.load": lambda: setattr(torch, "load", None),
}


def test_every_setting_has_a_test() -> None:
    # The threads between operators can be set once a process: the next test but one.
    once = "the thread count of torch between operators"
    there = "the random generators of graphics cards"  # needs one
    assert {setting.what for setting in SETTINGS} == {*CHANGES, once, there}


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_undone_and_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "beartype", raising=False)  # or Python's draws pass unseen
    setting = next(s for s in SETTINGS if s.what == what)
    before = setting.read()
    with contained() as conduct:
        CHANGES[what]()
    assert setting.same(before, setting.read())
    assert (conduct.changed, conduct.printed) == ([what], "")
    assert what in str(conduct)


def test_what_cannot_be_undone_is_named() -> None:
    code = (
        "import torch\n"
        "from ppap_host.plugins.containment import contained\n"
        "with contained() as conduct:\n"
        "    torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)\n"
        "print(conduct)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the thread count of torch between operators (for good: " in done.stdout


@pytest.mark.usefixtures("as_it_was")
def test_a_change_is_undone_when_the_code_raises() -> None:
    with suppress(ZeroDivisionError), contained() as conduct:
        torch.set_default_dtype(torch.float16)
        _ = 1 / 0
    assert torch.get_default_dtype() == torch.float32
    assert conduct.changed == ["the default dtype of torch"]


def test_whoever_behaves_is_not_named() -> None:
    before = list(warnings.filters)
    with contained() as conduct:
        # A library may speak for itself, and a context manager cleans up behind itself.
        warnings.filterwarnings("ignore", module="a_library_of_mine")
        with torch.no_grad(), torch.random.fork_rng():
            torch.rand(3)
    assert not conduct
    assert str(conduct) == ""
    warnings.filters[:] = before  # type: ignore[index]


def test_a_filter_for_one_module_outlives_the_undoing_of_one_for_all() -> None:
    before = list(warnings.filters)
    with contained():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("ignore", module="a_library_of_mine")
    assert len(warnings.filters) == len(before) + 1
    assert warnings.filters[0][3] is not None
    warnings.filters[:] = before  # type: ignore[index]


def test_initial_weights_are_drawn_without_a_word_and_without_a_trace() -> None:
    before = torch.get_rng_state()
    with contained(draws=False) as conduct:
        nn.Linear(3, 3)
    assert not conduct
    assert torch.equal(before, torch.get_rng_state())


def test_a_long_print_is_told_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    with contained() as conduct:
        print("word " * 1000)
        sys.stdout.flush()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "word " * 1000 + "\n")
    assert str(conduct) == f"prints to standard output ({'word ' * 11 + 'wo...'!r}), " + (
        "which went to standard error"
    )


def test_bytes_do_not_reach_standard_output_either(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ppap_host.plugins.containment import contained\n"
        "with contained():\n"
        "    sys.stdout.buffer.write(b'bytes')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "bytes")


class Draws(Guide):
    """Draws from the global generator whenever it is asked, and once when it first is."""

    name = "draws"
    default_scale = {"": 1.0}  # noqa: RUF012

    def __init__(self, always: bool) -> None:
        self.always, self._network = always, None

    def network(self) -> nn.Module:
        if self._network is None:
            self._network = nn.Conv2d(3, 3, 1)
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.zeros(1, 3, *size))

    def prepare(self, x: Tensor) -> Tensor:
        return x + torch.rand(1) if self.always else x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().flatten(1).mean(1)

    distance = loss

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {}


def test_a_guide_that_draws_is_named_once_from_the_second_time_on() -> None:
    x = torch.zeros(1, 3, 4, 4)
    guide = Guarded(Draws(always=True), "ppap-x 1.0")
    guide.see(x)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            guide.see(x)
    (warning,) = caught
    assert warning.category is PluginWarning
    assert "'draws' of ppap-x 1.0, asked for see(), changes" in str(warning.message)
    assert torch.equal(before, torch.get_rng_state())


def test_a_guide_that_makes_its_network_when_it_is_needed_is_not_named() -> None:
    guide = Guarded(Draws(always=False), "ppap-x 1.0")
    for _ in range(2):
        guide.see(torch.zeros(1, 3, 4, 4))
    assert guide.network() is guide.network()


def test_a_guarded_guide_answers_as_the_guide_does() -> None:
    found = Registry()
    own = found.make("guide", "classifier", Guide, model=None)  # type: ignore[type-abstract]
    guarded = Guarded(own, "it")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = own.read_target("red cube", (64, 64)).value
    assert torch.equal(guarded.see(x), own.see(x))
    assert torch.equal(guarded.loss(guarded.see(x), target), own.loss(own.see(x), target))
    assert guarded.measure(own.see(x), target) == own.measure(own.see(x), target)
    tempered = guarded.tempered(1.5, 0.8)
    assert isinstance(tempered, Guarded)
    assert torch.equal(tempered.see(x), own.tempered(1.5, 0.8).see(x))
    public = {n for n in vars(Guide) if not n.startswith("_") and callable(getattr(Guide, n))}
    assert public <= set(vars(Guarded))


def test_two_threads_leave_standard_output_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with contained() as conduct:
            inside.set()
            leave.wait(10)
        assert not conduct

    thread = threading.Thread(target=other)
    before = sys.stdout
    thread.start()
    inside.wait(10)
    print("a result")  # of this thread, while the other one is watched
    with contained():
        print("another")
    leave.set()
    thread.join()
    assert sys.stdout is before
    assert capsys.readouterr().out == "a result\nanother\n"


def test_who_keeps_standard_output_prints_results_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contained() as conduct:
        kept = sys.stdout
        kept.write("now\n")
        assert kept.encoding == sys.stderr.encoding
    kept.write("later\n")
    out, err = capsys.readouterr()
    assert (out, err) == ("later\n", "now\n")
    assert conduct.printed == "now\n"


def test_without_a_standard_error_printing_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with contained() as conduct:
        print("hello")
    assert conduct.printed == "hello\n"


def test_leaving_is_an_error_like_any_other() -> None:
    with pytest.raises(RuntimeError, match=r"it calls sys\.exit\(3\)"), contained():
        sys.exit(3)


def test_a_library_reads_the_variables_of_whoever_imports_it_as_they_were() -> None:
    code = (
        "import os\n"
        "from ppap_host.plugins.containment import contained\n"
        "os.environ['OMP_NUM_THREADS'] = '2'\n"
        "with contained() as outer, contained() as conduct:\n"
        "    os.environ['OMP_NUM_THREADS'] = '1'\n"
        "    import torch\n"
        "    torch.set_default_dtype(torch.float64)\n"
        "print(torch.get_num_threads(), torch.get_default_dtype(), conduct.changed)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 torch.float32 ['environment variables of the number")
    assert "default dtype" in done.stdout


WRONG = """
import json, torch
from PIL import Image
from torch import nn
from ppap_host.files.errors import PluginError
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.loading import Guarded

class Sound(Guide):
    name = "sound"
    def network(self): return nn.Identity()
    def understand(self, given, size): return Target(given.words, torch.zeros(1, 3, *size))
    def prepare(self, x): return x
    def loss(self, output, target): return (output - target).square().flatten(1).mean(1)
    distance = loss
    def picture(self, output): return []
    def measure(self, output, target): return {}

x = torch.zeros(1, 3, 4, 4)
said = {}
for method, given in {
    "network": (), "understand": (Given.of("x"), (4, 4)), "prepare": (x,), "see": (x,),
    "loss": (x, x), "distance": (x, x), "picture": (x,), "measure": (x, x),
}.items():
    getattr(Guarded(Sound(), "it"), method)(*given)
    wrong = Guarded(type("Wrong", (Sound,), {method: lambda *args: 0.5})(), "ppap-x 1.0")
    try:
        getattr(wrong, method)(*given)
    except PluginError as error:
        said[method] = str(error)
print(json.dumps(said))
"""


def test_an_answer_of_another_type_is_named() -> None:
    # In a process of its own: here, annotations are checked, too.
    done = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    methods = "network understand prepare see loss distance picture measure"
    assert list(said) == methods.split()
    for method, text in said.items():
        assert text.startswith(f"The guide 'sound' of ppap-x 1.0 returns a float from {method}(), ")


def test_running_out_of_memory_is_nobodys_fault(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("ppap_host.cli.list.print_json", full)
    outcome = ppap_here("list", "--json")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: There is not enough memory: OutOfMemoryError")
    assert "--batch" in outcome.err


def test_a_plugin_warning_is_one_line_on_standard_error(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warns(*args: object, **kwargs: object) -> None:
        warnings.warn("The plugin a hums.", PluginWarning, stacklevel=1)

    monkeypatch.setattr("ppap_host.cli.list.print_json", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        outcome = ppap_here("list", "--json")
    assert outcome.err == "Warning: The plugin a hums.\n"
