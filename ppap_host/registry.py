"""Finds plugins, isolates the broken ones, looks things up by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from ppap_host import hookspecs
from ppap_host.errors import PluginError, PpapError, UnknownNameError, unknown_name
from ppap_host.hookspecs import INTERFACE, Entry
from ppap_host.names import BALANCE_SUMMARIES, SAMPLER_SUMMARIES
from ppap_host.weights import PublishedFile

if TYPE_CHECKING:
    from ppap_host.config import RunConfig

T = TypeVar("T")

ENTRY_POINTS = "ppap"
SLOW_IMPORT = 0.5
"""Seconds of import after which a plugin is reported as slow."""

Kind = Literal["guide", "backbone", "recipe", "expert set"]
HOOKS: dict[Kind, str] = {
    "guide": "ppap_guides",
    "backbone": "ppap_backbones",
    "recipe": "ppap_recipes",
    "expert set": "ppap_expert_sets",
}
WEIGHTS_HOOK = "ppap_weights"
PUBLISHED = "published file"
"""What files of :data:`WEIGHTS_HOOK` are called in messages; they are no kind of entry."""

# What the project itself publishes, so that an unknown name can be answered with a command.
KNOWN_PLUGINS: dict[Kind, dict[str, str]] = {
    "guide": {
        "classifier": "ppap-plugin-classifier",
        "clip": "ppap-plugin-clip",
        "style": "ppap-plugin-clip",
        "depth": "ppap-plugin-depth",
        "segmentation": "ppap-plugin-segmentation",
        "adm-classifier": "ppap-plugin-openai",
        "super-resolution": "ppap-plugin-restore",
        "inpainting": "ppap-plugin-restore",
        "deblur": "ppap-plugin-restore",
        "motion-deblur": "ppap-plugin-restore",
        "colourise": "ppap-plugin-restore",
    },
    "backbone": {
        "adm": "ppap-plugin-openai",
        "adm-256-uncond": "ppap-plugin-openai",
        "dit-xl-2-256": "ppap-plugin-dit",
        "edm": "ppap-plugin-edm",
        "glide": "ppap-plugin-openai",
    },
}


@dataclass
class Plugin:
    """One plugin as it was found.

    Attributes:
        name: of its entry point.
        distribution, version: of the package that declares it.
        module: the entry point's value.
        problem: why it is left out, or None if it works.
        warning: what is wrong with it although it works, or None.
        seconds: its import took.
        offers: what it registered, by kind.
        published: files of weights that it declares.
    """

    name: str
    distribution: str
    version: str
    module: str
    problem: str | None = None
    warning: str | None = None
    seconds: float = 0.0
    offers: dict[Kind, list[Entry]] = field(default_factory=dict)
    published: list[PublishedFile] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


class Registry:
    """All plugins of this environment, the host's own among them.

    The host's things are registered through the same hooks as anyone's. A broken plugin becomes a
    line with a reason, never an exception; only asking for a name that two plugins claim, or that a
    broken one would have provided, is an error.
    """

    def __init__(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        """Loads every plugin of ``entry_points`` (default: those installed)."""
        self._manager = pluggy.PluginManager("ppap")
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self._claims: dict[Kind, dict[str, list[tuple[Plugin, Entry]]]] = {k: {} for k in HOOKS}
        self._published: dict[str, list[tuple[Plugin, PublishedFile]]] = {}
        found = metadata.entry_points(group=ENTRY_POINTS) if entry_points is None else entry_points
        self._add("host", "ppap-host", _version("ppap-host"), "ppap_host.builtin", _host_module)
        for point in sorted(found, key=lambda p: (p.name, p.value)):
            dist = point.dist
            name, version = (dist.name, dist.version) if dist else ("unknown", "")
            self._add(point.name, name, version, point.value, point.load)

    def _add(
        self, name: str, distribution: str, version: str, module: str, load: Callable[[], object]
    ) -> None:
        plugin = Plugin(name, distribution, version, module)
        self.plugins.append(plugin)
        began = time.perf_counter()
        try:
            loaded = load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            plugin.problem = f"cannot be imported: {_in_a_line(error)}"
            return
        finally:
            plugin.seconds = time.perf_counter() - began
        try:
            plugin.problem = self._register(plugin, loaded)
        except (Exception, SystemExit) as error:
            plugin.problem = f"fails in a hook: {_in_a_line(error)}"
        if plugin.problem is not None:
            plugin.offers.clear()
            plugin.published.clear()
            return
        if plugin.seconds > SLOW_IMPORT:
            plugin.warning = (
                f"slow: its import takes {plugin.seconds:.1f} s; "
                "it should import heavy libraries only inside what it registers"
            )
        for kind, entries in plugin.offers.items():
            for entry in entries:
                self._claims[kind].setdefault(entry.name, []).append((plugin, entry))
        for file in plugin.published:
            self._published.setdefault(file.name, []).append((plugin, file))

    def _register(self, plugin: Plugin, loaded: object) -> str | None:
        """Checks and registers a loaded plugin; the reason if it must be left out."""
        wanted = getattr(loaded, "ppap_interface", None)
        if wanted != INTERFACE:
            written = "declares no ppap_interface" if wanted is None else f"is for {wanted}"
            return (
                f"is written for another interface version: this host has {INTERFACE}, it {written}"
            )
        self._manager.register(loaded, name=f"{plugin.distribution}:{plugin.name}")
        unknown = [
            caller.name
            for caller in self._manager.get_hookcallers(loaded) or ()
            if not caller.has_spec()
        ]
        if unknown:
            self._manager.unregister(loaded)
            return (
                f"implements unknown hooks {', '.join(sorted(unknown))}; "
                f"known: {', '.join(sorted([*HOOKS.values(), WEIGHTS_HOOK]))}"
            )
        for kind, hook in HOOKS.items():
            if not hasattr(loaded, hook):
                continue
            entries = list(getattr(loaded, hook)())
            for entry in entries:
                if not isinstance(entry, Entry):
                    self._manager.unregister(loaded)
                    return f"{hook} must return a list of Entry, not of {type(entry).__name__}"
            plugin.offers[kind] = entries
        if hasattr(loaded, WEIGHTS_HOOK):
            files = list(getattr(loaded, WEIGHTS_HOOK)())
            for file in files:
                if not isinstance(file, PublishedFile):
                    self._manager.unregister(loaded)
                    return (
                        f"{WEIGHTS_HOOK} must return a list of PublishedFile, "
                        f"not of {type(file).__name__}"
                    )
            plugin.published = files
        return None

    def names(self, kind: Kind) -> dict[str, list[tuple[Plugin, Entry]]]:
        """Everything of a kind: name -> who claims it (more than one is a collision)."""
        return dict(sorted(self._claims[kind].items()))

    def published_files(self) -> dict[str, list[tuple[Plugin, PublishedFile]]]:
        """All published files of weights: name -> who claims it (more than one is a collision)."""
        return dict(sorted(self._published.items()))

    def published(self, name: str) -> PublishedFile:
        """The one published file of this name.

        Raises:
            PluginError: two plugins claim the name.
            UnknownNameError: nobody declares it; says the nearest names.
        """
        claims = self._published.get(name, [])
        if len(claims) == 1:
            return claims[0][1]
        if claims:
            raise _claimed_twice(PUBLISHED, name, [plugin for plugin, _ in claims])
        error = unknown_name(PUBLISHED, name, self._published)
        if not self._published:
            error.remedy = "No plugin that is installed declares one."
        raise error

    def collisions(self) -> list[tuple[str, str, list[str]]]:
        """Names that several plugins claim: (kind, name, labels of the plugins)."""
        owners: dict[tuple[str, str], list[Plugin]] = {
            (kind, name): [plugin for plugin, _ in found]
            for kind, claims in self._claims.items()
            for name, found in claims.items()
        }
        for name, files in self._published.items():
            owners[PUBLISHED, name] = [plugin for plugin, _ in files]
        return [
            (kind, name, sorted(plugin.label for plugin in plugins))
            for (kind, name), plugins in owners.items()
            if len(plugins) > 1
        ]

    def entry(self, kind: Kind, name: str) -> Entry:
        """The one thing of this kind and name.

        Raises:
            PluginError: two plugins claim the name, or it belongs to a broken plugin.
            UnknownNameError: nobody offers it; says the nearest name and how to install it.
        """
        claims = self._claims[kind].get(name, [])
        if len(claims) == 1:
            return claims[0][1]
        if claims:
            raise _claimed_twice(kind, name, [plugin for plugin, _ in claims])
        known_as = KNOWN_PLUGINS.get(kind, {}).get(name)
        for plugin in self.plugins:
            if plugin.problem and (plugin.name == name or plugin.distribution == known_as):
                raise PluginError(
                    f"The plugin {plugin.label}, which should provide the {kind} {name!r}, "
                    f"{plugin.problem}.",
                    remedy="Mend or reinstall it; `ppap list` and `ppap doctor` say more.",
                )
        raise self._unknown(kind, name)

    def check(self, config: RunConfig) -> None:
        """Whether everything a configuration names exists; imports none of it.

        Raises:
            PluginError, UnknownNameError: as :meth:`entry`.
        """
        if config.sampler not in SAMPLER_SUMMARIES:
            raise unknown_name("sampler", config.sampler, SAMPLER_SUMMARIES)
        self.entry("backbone", config.backbone)
        if config.balance not in BALANCE_SUMMARIES:
            raise unknown_name("balance", config.balance, BALANCE_SUMMARIES)
        from ppap_host.config import split_recipe

        for recipe in (config.recipe, *(g.recipe for g in config.guides)):
            if recipe is not None:
                self.entry("recipe", split_recipe(recipe)[0])
        for guide in config.guides:
            self.entry("guide", guide.name)

    def make(self, kind: Kind, name: str, wanted: type[T], **options: str | None) -> T:
        """What the factory of this kind and name returns for ``options``.

        Raises:
            PluginError: the factory fails in a way that is not the user's fault, or returns
                something else than a ``wanted``; or as :meth:`load`.
            PpapError: what the factory itself says about the options.
        """
        factory = self.load(kind, name)
        (plugin, _), *_ = self._claims[kind][name]
        try:
            made = factory(**options)
        except PpapError:
            raise
        except Exception as error:
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} cannot be made: {_in_a_line(error)}.",
                remedy="This is a fault of the plugin; tell its authors (--debug shows where).",
            ) from error
        if not isinstance(made, wanted):
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} makes a {type(made).__name__}, "
                f"not a {wanted.__name__}.",
                remedy="This is a fault of the plugin; tell its authors.",
            )
        return made

    def load(self, kind: Kind, name: str) -> Any:
        """What the entry of this kind and name stands for, imported now.

        Raises:
            PluginError: its import fails, or as :meth:`entry`.
            UnknownNameError: as :meth:`entry`.
        """
        entry = self.entry(kind, name)
        try:
            return entry.load()
        except (Exception, SystemExit) as error:
            (plugin, _), *_ = self._claims[kind][name]
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} cannot be loaded: {_in_a_line(error)}.",
                remedy="Run `ppap doctor`; if it finds nothing, reinstall the plugin.",
            ) from error

    def _unknown(self, kind: Kind, name: str) -> UnknownNameError:
        published = KNOWN_PLUGINS.get(kind, {})
        known = {*self._claims[kind], *published}
        error = unknown_name(kind, name, known)
        wanted = published.get(name)
        if wanted:
            error = unknown_name(kind, name, self._claims[kind])
            error.remedy = f"Install it with `pip install {wanted}`. {error.remedy}"
        else:
            missing = {k: p for k, p in published.items() if k not in self._claims[kind]}
            if missing:
                offers = ", ".join(f"{k!r} with `pip install {p}`" for k, p in missing.items())
                error.remedy += f" Not installed here: {offers}."
        return error


def _claimed_twice(kind: str, name: str, plugins: Iterable[Plugin]) -> PluginError:
    owners = " and ".join(sorted({plugin.label for plugin in plugins}))
    distributions = sorted({plugin.distribution for plugin in plugins})
    return PluginError(
        f"The {kind} {name!r} is claimed by {owners}.",
        remedy="Uninstall one of them: "
        + " or ".join(f"`pip uninstall {dist}`" for dist in distributions)
        + ".",
    )


def _host_module() -> ModuleType:
    from ppap_host import builtin

    return builtin


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _in_a_line(error: BaseException) -> str:
    """Type and message, without the notes and the line breaks that some libraries put in it."""
    name = type(error).__name__
    text = " ".join(str(error).split()).rstrip(".")
    return f"{name}: {text}" if text else name


@cache
def registry() -> Registry:
    """The registry of this environment, made once per process."""
    return Registry()
