"""diffusers' pipelines as backbones, and their autoencoders as decoders of latents.

* :mod:`~ppap_host.pipelines.backbone`: the backbone ``diffusers``, from a name or a folder.
* :mod:`~ppap_host.pipelines.families`: what each kind of pipeline has of its own.
* :mod:`~ppap_host.pipelines.schedules`: a scheduler's noise levels as the host's.
* :mod:`~ppap_host.pipelines.autoencoder`: latents to images, differentiably.
* :mod:`~ppap_host.pipelines.callback`: guidance of an unmodified pipeline.
"""

from __future__ import annotations
