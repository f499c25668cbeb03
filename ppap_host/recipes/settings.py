"""Recipes as users write them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ppap_host.files.errors import OptionError

if TYPE_CHECKING:
    from ppap_host.recipes.recipe import Recipe


def checked_recipe(given: Any) -> Any:
    """What is given as a recipe.

    Raises:
        ValueError: it is none.
    """
    if given is None or isinstance(given, str):
        return given
    from ppap_host.recipes.recipe import Recipe

    if not isinstance(given, Recipe):
        raise ValueError("the name of a recipe, or a Recipe")
    return given


def split_recipe(text: str | Recipe) -> tuple[str, dict[str, str]]:
    """The name and the parameters of a recipe as the user writes it, ``tfg:rho=0.5,mu=0.25``.

    One in memory has its parameters in it.

    Raises:
        OptionError: what follows the colon is no list of settings.
    """
    if not isinstance(text, str):
        return text.name, {}
    name, _, settings = text.partition(":")
    values: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key or not value:
            raise OptionError(
                f"{setting!r} in the recipe {text!r} sets nothing.",
                remedy="Write NAME:PARAMETER=VALUE,PARAMETER=VALUE, such as tfg:rho=0.5,mu=0.25.",
            )
        if key in values:
            raise OptionError(
                f"The recipe {text!r} sets {key!r} twice.", remedy="Leave one of them out."
            )
        values[key] = value
    return name.strip(), values


def absolutely(text: str | Recipe) -> str | Recipe:
    """The recipe as the user gives it, asked for with absolute strength.

    Raises:
        OptionError: what follows the colon is no list of settings.
    """
    if not isinstance(text, str):
        return replace(text, absolute=True)
    name, values = split_recipe(text)
    settings = {"absolute": "yes"} | values | {"absolute": "yes"}
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in settings.items())
