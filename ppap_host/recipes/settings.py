"""Recipes as users write them."""

from __future__ import annotations

from ppap_host.files.errors import OptionError


def split_recipe(text: str) -> tuple[str, dict[str, str]]:
    """The name and the parameters of a recipe as the user writes it, ``tfg:rho=0.5,mu=0.25``.

    Raises:
        OptionError: what follows the colon is no list of settings.
    """
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


def absolutely(text: str) -> str:
    """The recipe as the user writes it, asked for with absolute strength.

    Raises:
        OptionError: what follows the colon is no list of settings.
    """
    name, values = split_recipe(text)
    settings = {"absolute": "yes"} | values | {"absolute": "yes"}
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in settings.items())
