"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ppap_host.files.errors import OptionError

Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="Weights of the backbone.")]
Vae = Annotated[
    str | None, typer.Option("--vae", help="Autoencoder of latent backbones that need one.")
]
Upsampler = Annotated[
    str | None, typer.Option("--upsampler", help="Second stage of cascaded backbones.")
]
BackboneOption = Annotated[
    list[str] | None,
    typer.Option("--backbone-option", help="KEY=VALUE, what else the backbone takes."),
]


def backbone_options(
    vae: str | None, upsampler: str | None, others: list[str] | None
) -> dict[str, str]:
    """What a backbone's factory is given besides its checkpoint.

    Raises:
        OptionError: an entry of ``others`` is not KEY=VALUE.
    """
    found = {"vae": vae, "upsampler": upsampler}
    options = {key: value for key, value in found.items() if value is not None}
    for text in others or []:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise OptionError(f"--backbone-option {text!r} has no value.", remedy="Give KEY=VALUE.")
        options[key.replace("-", "_")] = value
    return options
