"""Checks of the project: ``nox`` runs tests, lint, types and docs; ``nox -s bench`` measures."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "lint", "types", "docs"]

PLUGINS = [
    f"./plugins/ppap-plugin-{name}"
    for name in (
        "bench", "classifier", "clip", "depth", "dit", "edm", "openai", "restore", "segmentation"
    )
]  # fmt: skip
GROUPS = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """What a dependency group of pyproject.toml asks for."""
    return list(nox.project.dependency_groups(GROUPS, name))


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite; further arguments go to pytest."""
    run_tests(session)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The test suite on the newest Python that is supported."""
    run_tests(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """The test suite with the lowest versions that the packages' dependencies allow."""
    run_tests(session, "--resolution=lowest-direct")


def run_tests(session: nox.Session, *options: str) -> None:
    """Installs everything, with these options of the installer, and runs pytest."""
    session.install(*options, ".[formats]", *PLUGINS, *group("test"))
    # A process a core, each with one thread: faster than one process with a thread a core.
    shared = ("--numprocesses=auto", "--maxprocesses=8", "--dist=worksteal")
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    session.run("pytest", *shared, *session.posargs, env=threads)
    vectors = os.environ.get("PPAP_VECTORS", Path(__file__).parent.parent / "shared" / "vectors")
    if not any(Path(vectors).rglob("case.json")):
        # After all other sessions: it is no failure, and is not to be missed.
        atexit.register(
            print, f"Not compared with the reference vectors, which are not in {vectors}."
        )


@nox.session
def planted(session: nox.Session) -> None:
    """Plants faults and asks whether the tests notice; ``-- --write`` writes docs/planted.md."""
    session.install(".", *PLUGINS, *group("test"))
    session.run("python", "tests/planted", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Mutation testing of the numerical core; arguments as tests/planted/mutants.py has them."""
    session.install(".", *PLUGINS, *group("test"), "cosmic-ray>=8.4")
    session.run(
        "python", "tests/planted/mutants.py", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: errors and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy in strict mode for the host and the plugins."""
    session.install(".", *PLUGINS, *group("types"))
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings being errors."""
    # Neither the host nor torch: the reference is read from the source.
    session.install(*group("site"))
    session.run("mkdocs", "build", "--strict", "--site-dir", session.create_tmp())


@nox.session
def robustness(session: nox.Session) -> None:
    """Hostile inputs and faults, one by one; renews the table of docs/robustness.md with --write.

    Takes about twenty minutes on two cores; kinds can be run by themselves (``-- --kind 7``).
    """
    session.install(".", *PLUGINS, *group("test"))
    session.run("python", "-m", "robustness", *session.posargs,
                env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"})  # fmt: skip


@nox.session
def support(session: nox.Session) -> None:
    """Every pipeline class of diffusers run and guided; renews docs/backbones/support.md.

    Takes about ten minutes on two cores; the tests make a sample of it again and compare.
    """
    session.install(".", *PLUGINS, *group("test"))
    session.run("python", "tests/support.py", "docs/backbones/support.md", *session.posargs,
                env={"OMP_NUM_THREADS": "1"})  # fmt: skip


@nox.session
def memory(session: nox.Session) -> None:
    """What a guided step needs, counted on the meta device; renews docs/backbones/memory.md.

    Two cases are measured on the CPU with random weights: up to 4 GB, some minutes.
    """
    session.install(".[pipelines]")
    session.run("python", "tests/memory.py", "docs/backbones/memory.md", *session.posargs,
                env={"OMP_NUM_THREADS": "1"})  # fmt: skip


@nox.session
def soak(session: nox.Session) -> None:
    """Jobs that are killed, stopped, starved and doubled for an hour; ``-- --minutes 5`` for less.

    As root it fills a disk of its own.
    """
    session.install(".", *PLUGINS, *group("test"))
    session.run("python", "-m", "robustness.soak", *session.posargs,
                env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"})  # fmt: skip


@nox.session
def bench(session: nox.Session) -> None:
    """Times of the first command, of a guided step against its parts, and of the start-up."""
    session.install(".", *PLUGINS)
    session.run("python", "-m", "ppap_plugin_bench.times", *session.posargs)
