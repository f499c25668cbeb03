"""Guidance methods as compositions of small parts, and the presets that have names.

A recipe says what the guide is shown (:class:`~ppap_host.recipes.views.View`), how its loss is
evaluated there (:class:`~ppap_host.recipes.energies.Energy`), what is done to the gradient
(:class:`~ppap_host.recipes.gradients.GradientPart`), how often it is followed
(:class:`~ppap_host.recipes.ascents.Ascent`), where it is applied
(:class:`~ppap_host.recipes.places.Place`), how strongly
(:class:`~ppap_host.recipes.strengths.Strength`) and at which steps; or, by values alone, how
images are chosen (:class:`~ppap_host.recipes.selections.Selection`). The sampling loop in
:mod:`ppap_host.sampling.loop` is the same for all of them.

Sign and units: ``gradient`` is the gradient of *minus* the guide's loss, that is of a log
likelihood up to scale, per image, its length that of a label's gradient also where the loss is a
mean over pixels (:attr:`ppap_host.guides.guide.Guide.averages_pixels`); it is multiplied by the
user's scale and the recipe's strength.
"""
