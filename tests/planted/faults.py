"""Faults that the tests must notice: text of the product, and what it is replaced by.

Each is of a kind that has been seen to slip through: a missing factor, a wrong sign, a shifted
index, an open bound for a closed one, a thing made twice, a part that is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        what: in a few words.
        file: from the root of the repository.
        old, new: text that occurs there once, and what stands there instead.
        tests: at least one of them fails, without vectors.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_EQ = "tests/equations"


def _method(preset: str, *solvers: str) -> tuple[str, ...]:
    return tuple(
        f"{_EQ}/test_methods.py::test_a_preset_is_its_papers_method[{s}-{preset}]" for s in solvers
    )


def _choice(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_choices.py::test_{name}",)


def _share(name: str) -> tuple[str, ...]:
    return (f"tests/test_relative_strength.py::test_{name}",)


def _part(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_parts.py::test_{name}",)


_RECIPES, _SAMPLING = "ppap_host/recipes", "ppap_host/sampling"
_NOISE, _EXPERTS = "ppap_host/backbones/noise.py", "ppap_host/experts"
_BACKBONE = "ppap_host/backbones/backbone.py"
_HARVESTING = "ppap_host/runs/harvesting.py"


def _plugin(name: str, module: str) -> str:
    return f"plugins/ppap-plugin-{name}/src/ppap_plugin_{name}/{module}.py"


def _of_plugin(name: str, test: str) -> tuple[str, ...]:
    return (f"plugins/ppap-plugin-{name}/tests/{test}",)


def _schedule(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_schedules.py::test_{name}",)


def _patch(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_patches.py::test_{name}",)


def _teaching(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_teaching.py::test_{name}",)


def _loss(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_losses.py::test_{name}",)


def _several(names: str, solver: str) -> tuple[str, ...]:
    test = "several_guides_are_their_methods_without_what_they_have_against_each_other"
    return (f"{_EQ}/test_methods.py::test_{test}[{solver}-{names}]",)


FAULTS: tuple[Fault, ...] = (
    # What someone found to go unnoticed.
    Fault(
        "the learned variance is inverted",
        f"{_RECIPES}/estimate.py",
        "fraction * posterior.log_upper + (1 - fraction) * posterior.log_lower",
        "fraction * posterior.log_lower + (1 - fraction) * posterior.log_upper",
        _part("the_variance_of_an_ancestral_step"),
    ),
    Fault(
        "the low-rank merge is W - B A",
        f"{_EXPERTS}/patches.py",
        "laid[name] = (known.detach().to(work) + self.scaling * delta).to(known)",
        "laid[name] = (known.detach().to(work) - delta).to(known)",
        _patch("a_merged_weight_is_w_plus_alpha_over_r_b_a"),
    ),
    Fault(
        "alpha / r is ignored",
        f"{_EXPERTS}/patches.py",
        "+ self.scaling * delta)",
        "+ delta)",
        _patch("a_merged_weight_is_w_plus_alpha_over_r_b_a"),
    ),
    Fault(
        "EluCD-EDM's strength rises",
        f"{_RECIPES}/strengths.py",
        "self.maximum / (count + 1) * (count + 1 - i)",
        "self.maximum / (count + 1) * (i + 1)",
        _part("elucds_strength_for_edm_falls_in_a_line_and_bulges_in_a_sine"),
    ),
    Fault(
        "the strength of `ppap`, `x0` and `x0-through` is constant",
        f"{_RECIPES}/strengths.py",
        "return self.factor * math.pow(level.sigma / level.scale, self.power)",
        "return self.factor",
        _method("ppap", "ddim"),
    ),
    Fault(
        "the division of PerRootLoss is left out",
        f"{_RECIPES}/gradients.py",
        "return gradient / each(root, gradient).to(gradient)",
        "return gradient",
        _method("dps", "ddim"),
    ),
    Fault(
        "every shard of a harvest is made again",
        _HARVESTING,
        "            if not _is_made(result, i):\n",
        "            if True:\n",
        _teaching("a_harvest_that_goes_on_makes_only_what_is_missing"),
    ),
    Fault(
        "a tuning has no warm-up",
        f"{_EXPERTS}/tuning.py",
        "config.learning_rate * min(1.0, (self.step + 1) / warm) * share",
        "config.learning_rate * share",
        _teaching("a_tuning_is_adamw_with_warm_up_cosine_and_clipping"),
    ),
    Fault(
        "a tuning's rate does not fall",
        f"{_EXPERTS}/tuning.py",
        "share = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))",
        "share = 1.0",
        _teaching("a_tuning_is_adamw_with_warm_up_cosine_and_clipping"),
    ),
    Fault(
        "a tuning does not clip its gradients",
        f"{_EXPERTS}/tuning.py",
        'nn.utils.clip_grad_norm_(group["params"], 1.0)',
        "pass",
        _teaching("a_tuning_is_adamw_with_warm_up_cosine_and_clipping"),
    ),
    Fault(
        "a harvest ignores its `cfg`",
        _HARVESTING,
        "self.cfg = cfg if conditional else 1.0",
        "self.cfg = 1.0",
        _teaching("a_harvest_strengthens_its_classes_as_classifier_free_guidance_says"),
    ),
    Fault(
        "a third guide is ignored by `balance`",
        f"{_SAMPLING}/balance.py",
        "        for j, other in enumerate(gradients):\n",
        "        for j, other in enumerate(gradients[:2]):\n",
        _several("x0+dps+mpgd", "ddim eta"),
    ),
    Fault(
        "a guide that moves the entering state goes past `balance`",
        f"{_SAMPLING}/evaluator.py",
        "ways = self.balance([way for *_, way, _ in moved]) if moved else []",
        "ways = [way for *_, way, _ in moved]",
        _several("elucd-edm+x0+elucd-edm", "ddim"),
    ),
    Fault(
        "PiGDM is deaf to noise",
        f"{_RECIPES}/energies.py",
        "ratio = min(self.noise / spread, 1e100) ** 2 if spread else 0.0",
        "ratio = 0.0",
        _part("the_linear_posterior_pulls_as_pigdm"),
    ),
    Fault(
        "a range is closed on its other side",
        _NOISE,
        "return self.low <= log_snr < self.high",
        "return self.low < log_snr <= self.high",
        _patch("a_level_at_a_bound_is_served_by_the_cleaner_expert_and_no_other"),
    ),
    # Views
    Fault(
        "what a guide sees of x_t is not at unit scale",
        f"{_RECIPES}/views.py",
        "return variable / estimate.level.scale",
        "return variable",
        _part("views_show_what_they_say"),
    ),
    Fault(
        "small states are enlarged to unit size",
        f"{_RECIPES}/views.py",
        "return x / root_mean_square(x).clamp_min(1.0)",
        "return x / root_mean_square(x)",
        _part("views_show_what_they_say"),
    ),
    Fault(
        "no gradient where a prediction was clipped",
        f"{_RECIPES}/views.py",
        "return raw + (estimate.x0 - raw).detach()",
        "return estimate.x0",
        _part("a_prediction_is_clipped_and_its_gradient_passes_as_said"),
    ),
    Fault(
        "a prediction lacks 1 / alpha",
        f"{_RECIPES}/views.py",
        "raw = (variable - estimate.level.sigma * estimate.eps) / estimate.level.alpha",
        "raw = variable - estimate.level.sigma * estimate.eps",
        _method("dps", "ddim"),
    ),
    # Energies
    Fault(
        "losses are averaged, not likelihoods",
        f"{_RECIPES}/energies.py",
        "return math.log(self.samples) - torch.logsumexp(-torch.stack(losses), dim=0)",
        "return torch.stack(losses).mean(dim=0)",
        _method("lgd-mc", "ddim"),
    ),
    Fault(
        "the smoothing noise does not fade",
        f"{_RECIPES}/energies.py",
        "return self.width * (level.sigma / level.scale if self.fading else 1.0)",
        "return self.width",
        _method("lgd-mc", "ddim"),
    ),
    Fault(
        "a guide looks at the state, not at the decoded image",
        f"{_RECIPES}/energies.py",
        "return self.guide.loss(self.guide.see(self.decode(state), self.told), self.target)",
        "return self.guide.loss(self.guide.see(state, self.told), self.target)",
        _part("a_point_energy_is_the_loss_of_the_decoded_state_at_the_level_that_is_told"),
    ),
    Fault(
        "PiGDM pushes away from its measurement",
        f"{_RECIPES}/energies.py",
        "return -(pull * image).flatten(1).sum(dim=1)",
        "return (pull * image).flatten(1).sum(dim=1)",
        _part("the_linear_posterior_pulls_as_pigdm"),
    ),
    # Strengths
    Fault(
        "EluCD's sine is counted from the noisy end",
        f"{_RECIPES}/strengths.py",
        "math.sin(math.pi * (count - 1 - step.index) / count)",
        "math.sin(math.pi * step.index / count)",
        _part("elucds_strength_is_the_variance_and_a_sine"),
    ),
    Fault(
        "EluCD's strength is measured at the schedule's own scale",
        f"{_RECIPES}/strengths.py",
        "step = estimate.on_walk().at_unit_scale()",
        "step = estimate.on_walk()",
        _part("elucds_strength_is_the_variance_and_a_sine"),
    ),
    Fault(
        "TFG's course is not normalised",
        f"{_RECIPES}/strengths.py",
        "return self.factor * shares[step.index] * count / sum(shares)",
        "return self.factor * shares[step.index]",
        _method("freedom", "ddim"),
    ),
    Fault(
        "PiGDM's step weighs sigma, not alpha",
        f"{_RECIPES}/strengths.py",
        "return self.factor * estimate.level.alpha",
        "return self.factor * estimate.level.sigma",
        _part("strengths_over_a_flow"),
    ),
    Fault(
        "what a step keeps is not squared",
        f"{_RECIPES}/estimate.py",
        "return ((now.alpha / now.scale) / (then.alpha / then.scale)) ** 2",
        "return (now.alpha / now.scale) / (then.alpha / then.scale)",
        _part("a_step_keeps_and_gives_back_on_every_schedule"),
    ),
    Fault(
        "recurrence adds all the noise of the level",
        f"{_RECIPES}/estimate.py",
        "added = math.sqrt(max(self.now.sigma**2 - ratio**2 * self.then.sigma**2, 0.0))",
        "added = self.now.sigma",
        _method("freedom", "ddim"),
    ),
    # Places
    Fault(
        "the score is shifted along the gradient",
        f"{_RECIPES}/places.py",
        "eps = estimate.eps - level.sigma * gradient",
        "eps = estimate.eps + level.sigma * gradient",
        _method("naive", "ddim"),
    ),
    Fault(
        "ancestral solvers keep the last guide's shift alone",
        f"{_RECIPES}/places.py",
        "mean_shift=gradient if before is None else before + gradient",
        "mean_shift=gradient",
        _part("ancestral_solvers_shift_their_mean_and_shifts_add_up"),
    ),
    Fault(
        "MPGD lets eps follow",
        f"{_RECIPES}/places.py",
        "        if self.keep_eps:\n            return replace(estimate, x0=x0, eps_kept=True)\n",
        "",
        _method("mpgd", "ddim"),
    ),
    Fault(
        "what is carried is divided by alpha_(t-1) / alpha_t",
        f"{_RECIPES}/places.py",
        "gradient = gradient * (step.then.alpha / step.now.alpha)",
        "gradient = gradient * (step.now.alpha / step.then.alpha)",
        _method("freedom", "ddim"),
    ),
    Fault(
        "a move at unit scale is brought to the level that is left",
        f"{_RECIPES}/places.py",
        "gradient = gradient * step.then.scale",
        "gradient = gradient * step.now.scale",
        _part("what_comes_after_the_step_is_brought_to_the_scale_of_the_next_level"),
    ),
    Fault(
        "a moved clean image is not clipped",
        f"{_RECIPES}/places.py",
        "if self.clip and estimate.clip is not None:",
        "if False:",
        _method("x0", "ddim strong"),
    ),
    # Ascents
    Fault(
        "TFG's iterations all start at the same point",
        f"{_RECIPES}/ascents.py",
        "gradient, _ = pull(start + way)",
        "gradient, _ = pull(start)",
        _method("tfg", "ddim"),
    ),
    Fault(
        "backward guidance climbs the loss",
        f"{_RECIPES}/ascents.py",
        "point.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)",
        "point.grad = gradient.nan_to_num(0.0, 0.0, 0.0)",
        _part("adam_is_adam_within_the_bounds_and_stops_where_the_loss_is_low"),
    ),
    Fault(
        "images that are done are moved on",
        f"{_RECIPES}/ascents.py",
        "point[done] = before[done]",
        "pass",
        _part("adam_is_adam_within_the_bounds_and_stops_where_the_loss_is_low"),
    ),
    # What is done to gradients
    Fault(
        "moments keep their bias",
        f"{_RECIPES}/gradients.py",
        "unbiased = m_new / (1 - self.beta1**t)",
        "unbiased = m_new",
        _method("adam-dps", "ddim"),
    ),
    Fault(
        "moments are forgotten after every step",
        f"{_RECIPES}/gradients.py",
        "        estimate.memory[self] = (m_new, v_new, t)\n",
        "",
        _method("adam-mpgd", "ddim"),
    ),
    Fault(
        "the filter's width is measured on the longer side",
        f"{_RECIPES}/gradients.py",
        "deviation = self.width * min(size)",
        "deviation = self.width * max(size)",
        _method("x0", "ddim"),
    ),
    Fault(
        "a limit is one for the whole batch",
        f"{_RECIPES}/gradients.py",
        "return peak * (x / peak).square().mean(dim=sides(x), keepdim=True).sqrt()",
        "return peak * (x / peak).square().mean().sqrt()",
        _part("sizes_and_limits_of_gradients_of_any_size"),
    ),
    Fault(
        "the root of the number of entries is left out",
        f"{_RECIPES}/gradients.py",
        "return gradient * math.sqrt(gradient[0].numel())",
        "return gradient",
        _method("mpgd", "ddim"),
    ),
    Fault(
        "the gradient is not brought to unit scale",
        f"{_RECIPES}/gradients.py",
        "        return gradient * estimate.level.scale\n",
        "        return gradient\n",
        _part("what_is_done_to_a_gradient"),
    ),
    Fault(
        "`x0-through` depends on the scale that a schedule gives its states",
        f"{_RECIPES}/presets.py",
        "gradient=(UnitScale(), RootSize()),",
        "gradient=(RootSize(),),",
        (
            f"{_EQ}/test_methods.py::test_how_a_schedule_scales_its_states_changes_nothing[ddim-x0-through]",
        ),
    ),
    # Relative strength
    Fault(
        "what an eps that follows takes back is not made up for",
        f"{_RECIPES}/shares.py",
        "at_now = moved.x0 * (1 - min(s_then / _relative(now), 1.0))",
        "at_now = moved.x0",
        _share("a_constant_pull_moves_every_step_by_its_share"),
    ),
    Fault(
        "additions are measured beside what is open before the step",
        f"{_RECIPES}/shares.py",
        "size, open_then = root_mean_square(added), spread(step.then) * self.deviation",
        "size, open_then = root_mean_square(added), open_now",
        _share("a_size_is_what_becomes_of_the_state_that_the_step_ends_in"),
    ),
    Fault(
        "an outlier becomes the measure of all that follows",
        f"{_RECIPES}/shares.py",
        "grown = torch.maximum(before, torch.minimum(usable, 2 * before))",
        "grown = torch.maximum(before, usable)",
        _share("one_outlier_is_cut_and_at_most_doubles_the_memory"),
    ),
    Fault(
        "an outlier's own move is not cut",
        f"{_RECIPES}/shares.py",
        "part = usable / torch.where(usable > most, usable, most)",
        "part = usable / most",
        _share("one_outlier_is_cut_and_at_most_doubles_the_memory"),
    ),
    Fault(
        "the memory changes at every evaluation",
        f"{_RECIPES}/shares.py",
        "if step is None or step != kept.step:",
        "if True:",
        _share("the_memory_changes_once_a_step_where_a_solver_evaluates_twice"),
    ),
    Fault(
        "what was decided is pulled at again",
        f"{_RECIPES}/shares.py",
        "else kept.size / EASED",
        "else 0.0 * kept.size",
        _share("another_network_is_followed_as_far_where_it_says_a_third"),
    ),
    Fault(
        "all experts share one memory as it is",
        f"{_RECIPES}/shares.py",
        "else kept.size / EASED",
        "else kept.size",
        _share("another_network_is_followed_as_far_where_it_says_a_third"),
    ),
    Fault(
        "DPM-Solver++ relaxes with noise as it does without",
        f"{_SAMPLING}/solvers.py",
        "math.expm1(-(1 + self.eta) * h) * d",
        "math.expm1(-h) * d",
        _method("x0", "dpm++ eta"),
    ),
    Fault(
        "a guide that is asked less often has no larger shares",
        f"{_SAMPLING}/evaluator.py",
        "for level in levels[:: recipe.every]",
        "for level in levels",
        _share("steps_are_those_in_which_the_guide_is_asked"),
    ),
    Fault(
        "every repeat moves as far as the step",
        f"{_SAMPLING}/evaluator.py",
        "times = move.ascent.steps * (1 if step is None else math.sqrt(self.recurrence(step)))",
        "times = move.ascent.steps",
        _share("iterations_moves_and_repeats_share_one_steps_portion"),
    ),
    Fault(
        "Adam's constant is beside the size of the loss",
        f"{_SAMPLING}/evaluator.py",
        'if getattr(part, "sized", False) and not absolute:',
        "if False:",
        _share("the_size_of_a_loss_means_nothing"),
    ),
    # The evaluator
    Fault(
        "a mean over pixels is not made up for",
        f"{_SAMPLING}/evaluator.py",
        "if g.guide.averages_pixels and not move.energy.in_pixels:",
        "if False:",
        (f"{_EQ}/test_methods.py::test_a_mean_over_pixels_counts_as_much_as_a_label",),
    ),
    Fault(
        "the limit ignores the place's unit",
        f"{_SAMPLING}/evaluator.py",
        "largest = move.limit * move.place.unit(estimate)",
        "largest = move.limit",
        _method("ugd", "ddim strong"),
    ),
    Fault(
        "the strength is limited along with the gradient",
        f"{_SAMPLING}/evaluator.py",
        "added = limited(gradient, largest) * move.strength(estimate)",
        "added = limited(gradient * move.strength(estimate), largest)",
        _method("x0", "ddim strong"),
    ),
    Fault(
        "the noise stays that of the unclipped image",
        f"{_SAMPLING}/reading.py",
        "eps = (x - level.alpha * x0) / level.sigma\n        others:",
        "pass\n        others:",
        _method("mpgd", "ddim eta"),
    ),
    Fault(
        "a guide that looks at predictions is told the noise",
        f"{_SAMPLING}/evaluator.py",
        "return level if view.sees_noise or g.guide.knows_predictions else None",
        "return level",
        _method("x0", "ddim"),
    ),
    Fault(
        "what acts once a step acts at every evaluation",
        f"{_SAMPLING}/evaluator.py",
        "if not move.place.enters and (first or not move.place.once)",
        "if not move.place.enters",
        _method("adam-dps", "heun"),
    ),
    Fault(
        "all moves start from the backbone's own prediction",
        f"{_SAMPLING}/evaluator.py",
        "source = guided if move.ascent.after else reading",
        "source = reading",
        _method("ugd", "ddim"),
    ),
    # Solvers
    Fault(
        "DDIM adds noise without turning inward",
        f"{_SAMPLING}/solvers.py",
        "inward = math.sqrt(max(then.sigma**2 - spread**2, 0.0))",
        "inward = then.sigma",
        _method("x0", "ddim eta"),
    ),
    Fault(
        "the ancestral step's noise has the variance for its deviation",
        f"{_SAMPLING}/solvers.py",
        "deviation = (0.5 * log_variance).exp()",
        "deviation = log_variance.exp()",
        _method("x0", "ddpm"),
    ),
    Fault(
        "the mean is shifted by the gradient without the variance",
        f"{_SAMPLING}/solvers.py",
        "mean = mean + log_variance.exp() * estimate.mean_shift",
        "mean = mean + estimate.mean_shift",
        _method("naive", "ddpm"),
    ),
    Fault(
        "DPM-Solver++ extrapolates backwards",
        f"{_SAMPLING}/solvers.py",
        "d = d + (d - d_before) / (2 * r)",
        "d = d - (d - d_before) / (2 * r)",
        _method("x0", "dpm++"),
    ),
    Fault(
        "DPM-Solver++ remembers the extrapolated image",
        f"{_SAMPLING}/solvers.py",
        "return x, estimate, (lam, estimate.x0)",
        "return x, estimate, (lam, d)",
        _method("x0", "dpm++"),
    ),
    Fault(
        "Heun's correction is not averaged",
        f"{_SAMPLING}/solvers.py",
        "return then.alpha * (y + (s_then - s) * (d + d_then) / 2), estimate, None",
        "return then.alpha * (y + (s_then - s) * d_then), estimate, None",
        _method("x0", "heun"),
    ),
    Fault(
        "churn raises the noise but not the level",
        f"{_SAMPLING}/solvers.py",
        "return raised.alpha * y, raised\n",
        "return raised.alpha * y, now\n",
        _method("x0", "heun churned"),
    ),
    Fault(
        "churn has no largest share",
        f"{_SAMPLING}/solvers.py",
        "min(churn.amount / steps, math.sqrt(2) - 1)",
        "churn.amount / steps",
        ("tests/test_sampling.py::test_churn_evaluates_at_trained_levels_above_those_of_the_walk",),
    ),
    # Noise
    Fault(
        "betas are not rescaled to the number of steps",
        _NOISE,
        "scale = 1000 / steps",
        "scale = 1.0",
        _schedule("linear_betas_are_a_line"),
    ),
    Fault(
        "the cosine is not squared",
        _NOISE,
        "return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2",
        "return math.cos((u + 0.008) / 1.008 * math.pi / 2)",
        _schedule("cosine_betas_multiply_to_a_squared_cosine"),
    ),
    Fault(
        "spacings round half up",
        _NOISE,
        "kept.append(start + round(position))",
        "kept.append(start + int(position + 0.5))",
        _schedule("spacings_keep_these_steps"),
    ),
    Fault(
        "the last variance is beta",
        _NOISE,
        "raw.of_x0, raw.of_xt, raw.variance, math.log(before.variance), raw.log_upper",
        "raw.of_x0, raw.of_xt, raw.variance, raw.log_lower, raw.log_upper",
        _schedule("the_posterior_is_bayes_rule"),
    ),
    Fault(
        "ranges are cut one step early",
        _NOISE,
        "after = [levels[i * total // count] for i in range(1, count)]",
        "after = [levels[i * total // count - 2] for i in range(1, count)]",
        _schedule("ranges_split_the_steps_evenly_and_cover_every_level"),
    ),
    Fault(
        "classifier-free guidance starts from the conditional branch",
        _BACKBONE,
        "guided = unconditional + scale * (conditional - unconditional)",
        "guided = conditional + scale * (conditional - unconditional)",
        _teaching("a_harvest_strengthens_its_classes_as_classifier_free_guidance_says"),
    ),
    # Experts
    Fault(
        "fresh factors are a thousandth of their size",
        f"{_EXPERTS}/patches.py",
        "bound = shape_a[1] ** -0.5",
        "bound = shape_a[1] ** -1.5",
        _patch("a_fresh_patch_begins_uniform_times_zero"),
    ),
    Fault(
        "the spread between batches is left out of the variance",
        f"{_EXPERTS}/patches.py",
        "sums[variances] += images * between.clamp_min(0)",
        "pass",
        ("tests/test_experts.py::test_statistics_are_those_of_the_activations",),
    ),
    Fault(
        "an expert stays where it was once merged",
        f"{_EXPERTS}/sets.py",
        "if self._active is None or self._active[0] != index:",
        "if self._active is None:",
        _patch("a_guide_looks_through_the_expert_of_each_level_as_its_weights_say"),
    ),
    Fault(
        "the student is shown the clean image",
        f"{_EXPERTS}/tuning.py",
        "return (alpha * x0 + sigma * noise.to(x0))[share]",
        "return x0[share]",
        (
            "tests/test_tuning.py::test_tuning_on_noised_images_is_what_it_was_before_there_were_views",
        ),
    ),
    Fault(
        "an expert ends in its last state, not in its best",
        f"{_EXPERTS}/tuning.py",
        "            if value < self.best[i]:\n",
        "            if True:\n",
        _teaching("the_best_state_is_kept_and_patience_counts_small_gains_as_none"),
    ),
    Fault(
        "the loss of a step is summed over the batch",
        f"{_EXPERTS}/tuning.py",
        "loss = self.guide.distance(student, teacher[process::processes]).sum() / len(rows)",
        "loss = self.guide.distance(student, teacher[process::processes]).sum()",
        _teaching("a_tuning_is_adamw_with_warm_up_cosine_and_clipping"),
    ),
    Fault(
        "the teacher is asked again for all shards",
        f"{_EXPERTS}/harvest.py",
        'if files[i].exists() and _holds(files[i], "output", rows):',
        "if False:",
        _teaching("a_teacher_is_asked_about_missing_shards_alone"),
    ),
    Fault(
        "every process makes all shards",
        _HARVESTING,
        "mine = range(process, result.shards, processes)",
        "mine = range(result.shards)",
        _teaching("processes_share_a_harvest_without_making_anything_twice"),
    ),
    # Guides
    Fault(
        "the temperatures change places",
        "ppap_host/guides/temperatures.py",
        "loss = loss - (self.joint - self.marginal) * (target.to(output) * output).sum(dim=1)",
        "loss = loss + (self.joint - self.marginal) * (target.to(output) * output).sum(dim=1)",
        _loss("temperatures_weigh_joint_and_marginal"),
    ),
    Fault(
        "a softened ReLU is sharper by two",
        "ppap_host/guides/activations.py",
        "return F.softplus(z, self.beta, _THRESHOLD)",
        "return F.softplus(z, 2 * self.beta, _THRESHOLD)",
        _part("the_network_of_a_guide_is_left_as_it_is_by_softening_it"),
    ),
    Fault(
        "the classifier's distillation runs the other way",
        _plugin("classifier", "losses"),
        'terms = F.kl_div(heard, says, reduction="none")',
        'terms = F.kl_div(says.log(), heard.exp(), reduction="none")',
        _loss("losses_of_classifiers_and_of_their_teaching"),
    ),
    Fault(
        "the teacher is softened where it should be sharpened",
        _plugin("classifier", "losses"),
        "says = (teacher / teacher_temperature).softmax(dim=1)",
        "says = (teacher * teacher_temperature).softmax(dim=1)",
        _loss("losses_of_classifiers_and_of_their_teaching"),
    ),
    Fault(
        "inverted depth counts as right",
        _plugin("depth", "losses"),
        "return 1 - _mean(standard[0] * standard[1], known)[:, 0, 0]",
        "return 1 - _mean(standard[0] * standard[1], known)[:, 0, 0].abs()",
        _loss("losses_of_depth"),
    ),
    Fault(
        "metric depth is compared without logarithms",
        _plugin("depth", "losses"),
        "logs = [maps.float().clamp_min(_NEAREST_METRES).log() for maps in (prediction, target)]",
        "logs = [maps.float().clamp_min(_NEAREST_METRES) for maps in (prediction, target)]",
        _loss("losses_of_depth"),
    ),
    Fault(
        "MiDaS's matching of gradients looks at one resolution",
        _plugin("depth", "losses"),
        "step = 2**scale",
        "step = 1",
        _loss("losses_of_depth"),
    ),
    Fault(
        "the angle to a text is not halved",
        _plugin("clip", "losses"),
        "return 2 * torch.atan2(apart, together).square()",
        "return 4 * torch.atan2(apart, together).square()",
        _loss("losses_of_embeddings_and_of_tokens"),
    ),
    Fault(
        "Gram matrices are sums over tokens, not means",
        _plugin("clip", "losses"),
        "return exact.mT @ exact / tokens.shape[1]",
        "return exact.mT @ exact",
        _loss("losses_of_embeddings_and_of_tokens"),
    ),
    Fault(
        "a target's own entropy is not taken off",
        _plugin("segmentation", "losses"),
        "each = (torch.special.xlogy(wanted, wanted) - wanted * seen).sum(dim=1)",
        "each = (-wanted * seen).sum(dim=1)",
        _loss("losses_of_segments"),
    ),
    Fault(
        "pixels that are not compared count",
        _plugin("segmentation", "losses"),
        "return total / compared.sum(dim=(1, 2)).clamp_min(1)",
        "return total / compared[0].numel()",
        _loss("losses_of_segments"),
    ),
    Fault(
        "a restored picture's residual is not squared",
        _plugin("restore", "guide"),
        "squares = (output - target.to(output)).square().mean(dim=(1, 2, 3))",
        "squares = (output - target.to(output)).abs().mean(dim=(1, 2, 3))",
        _loss("a_restoration_averages_over_what_was_measured"),
    ),
    Fault(
        "inpainting averages over pixels that were not measured",
        _plugin("restore", "guide"),
        "return squares / self._measurement(output).share",
        "return squares",
        _loss("a_restoration_averages_over_what_was_measured"),
    ),
    Fault(
        "a pseudo-inverse ignores the noise",
        _plugin("restore", "operators"),
        "power = response.abs().square() + ratio",
        "power = response.abs().square()",
        _of_plugin("restore", "test_restore_operators.py"),
    ),
    Fault(
        "the noise-aware classifier is told the step of the inverse noise",
        _plugin("openai", "guide"),
        "return float(np.interp(-level.log_snr, self._noise, np.arange(len(self._noise))))",
        "return float(np.interp(level.log_snr, self._noise, np.arange(len(self._noise))))",
        _loss("the_noise_aware_classifier_is_told_the_step_of_the_same_noise"),
    ),
    # Methods that draw, choose or renoise.
    Fault(
        "DSG's turned noise is not brought back to its length",
        f"{_RECIPES}/places.py",
        "mixed = mixed * (radius / (_lengths(mixed) + self.least))",
        "pass",
        _choice("dsg_turns_the_noise_of_a_step_and_keeps_its_length[ddim]"),
    ),
    Fault(
        "at relative strength DSG turns as far at every level",
        "ppap_host/recipes/places.py",
        "self.share * then.alpha * then.sigma / then.scale",
        "self.share * then.alpha",
        _choice(
            "dsg_at_relative_strength_turns_as_far_as_its_share_of_what_is_open[ddim]",
        ),
    ),
    Fault(
        "classifier-free guidance holds at every level",
        "ppap_host/backbones/backbone.py",
        "return self.scale if level.log_snr in self.interval else 1.0",
        "return self.scale",
        (
            "tests/test_cfg_interval.py::"
            "test_the_scale_holds_within_the_interval_and_is_one_without",
        ),
    ),
    Fault(
        "a quality wins over the strength that was given",
        "ppap_host/runs/quality.py",
        "scale=point.scale if given.scale is None else given.scale,",
        "scale=point.scale,",
        (
            "tests/test_quality.py::"
            "test_what_is_given_wins_and_the_rest_comes_from_the_frontier[guide3-run3-expected3]",
        ),
    ),
    Fault(
        "DAPS renoises to the level that it came from",
        f"{_RECIPES}/places.py",
        "then.alpha * estimate.x0 + then.sigma * estimate.asking()",
        "then.alpha * estimate.x0 + estimate.level.sigma * estimate.asking()",
        _choice("daps_samples_between_the_flows_end_and_the_guide_and_renoises"),
    ),
    Fault(
        "a Langevin update has the variance of its step, not twice that",
        f"{_RECIPES}/chains.py",
        "x = x + size * drift + math.sqrt(2 * size) * noise",
        "x = x + size * drift + math.sqrt(size) * noise",
        _choice("daps_samples_between_the_flows_end_and_the_guide_and_renoises"),
    ),
    Fault(
        "SVDD looks at candidates at the level that they came from",
        f"{_SAMPLING}/selecting.py",
        "self._foreseen(asked, state, step.then)",
        "self._foreseen(asked, state, step.now)",
        _choice("svdd_keeps_the_next_state_whose_prediction_is_worth_most[ddpm]"),
    ),
    Fault(
        "weights that no resampling has used up are lost",
        f"{_RECIPES}/selections.py",
        "total = log if self.published else log + before.weight",
        "total = log",
        _choice("potentials_multiply_to_that_of_the_image[True-max]"),
    ),
    Fault(
        "the last potential forgets those before",
        f"{_RECIPES}/selections.py",
        "return state, self.factor * end - before.product",
        "return state, self.factor * end",
        _choice("potentials_multiply_to_that_of_the_image[False-max]"),
    ),
    Fault(
        "the image of a population is its first particle",
        f"{_SAMPLING}/selecting.py",
        "return first + ranks.argmax(dim=1)",
        "return first",
        _choice("a_population_is_weighed_resampled_and_its_best_is_the_image[ddim-best-of-n-3.0]"),
    ),
    Fault(
        "what a solver remembers stays behind when particles are selected",
        f"{_SAMPLING}/loop.py",
        "x, estimate, memory = picked((x, estimate, memory), index, len(x))",
        "x, estimate = picked((x, estimate), index, len(x))",
        _choice("what_a_solver_remembers_goes_with_its_particle"),
    ),
    Fault(
        "optimised noise does not keep its length",
        f"{_RECIPES}/starts.py",
        "moved = moved * (length / torch.linalg.vector_norm(moved, dim=axes, keepdim=True))",
        "pass",
        _choice("initial_noise_follows_the_gradient_of_its_image_and_keeps_its_length[ddim]"),
    ),
    Fault(
        "CFG++ leads on with the guided noise",
        f"{_RECIPES}/estimate.py",
        "eps = self.eps + ratio * self.offset",
        "eps = self.eps",
        _choice(
            "cfgpp_takes_x0_from_the_guided_noise_and_leads_on_with_the_unconditional[0.6-ddim0]"
        ),
    ),
    Fault(
        "a guide that looks at something else is asked all the same",
        "ppap_host/guides/sight.py",
        "if guide.looks_at not in (None, makes):",
        "if False:",
        ("tests/test_states.py::test_a_guide_that_looks_at_something_else_is_refused[vectors]",),
    ),
    Fault(
        "grey images are shown as they are",
        "ppap_host/files/images.py",
        "return x.expand(-1, 3, *x.shape[2:]) if x.shape[1] == 1 else x",
        "return x",
        ("tests/test_states.py::test_grey_images_are_shown_to_guides_for_colours_as_grey",),
    ),
    Fault(
        "a scheduler is given the guided prediction's noise for the network's own output",
        "ppap_host/pipelines/samplers.py",
        "output = estimate.output if self._own else None",
        "output = None",
        ("tests/test_samplers.py::test_a_sampler_takes_diffusers_own_steps[flow-euler]",),
    ),
    Fault(
        "a sampler starts without the scheduler's own scale of noise",
        "ppap_host/pipelines/samplers.py",
        'getattr(walk.scheduler, "init_noise_sigma", 1.0)',
        "1.0",
        ("tests/test_samplers.py::test_a_sampler_takes_diffusers_own_steps[euler]",),
    ),
    Fault(
        "the second call of a step knows nothing of what is added after it",
        "ppap_host/pipelines/samplers.py",
        "estimate = replace(estimate, next_shift=first.next_shift)",
        "pass",
        ("tests/test_samplers.py::test_a_sampler_walks_the_levels_of_any_backbone[kdpm2]",),
    ),
    Fault(
        "the kit asks for what a guide sees where a target was named",
        "ppap_host/testing/guide_subject.py",
        "return self.text is not None or self.guide.rewards",
        "return self.guide.rewards",
        ("tests/test_testing_kit.py::test_every_check_asks_for_the_target_that_was_named",),
    ),
    # What no test without vectors noticed before, by reading and by nox -s mutants.
    Fault(
        "a Hamiltonian chain forgets that it keeps momentum",
        f"{_RECIPES}/chains.py",
        "math.sqrt(2 * (1 - self.momentum)) * noise",
        "math.sqrt(2) * noise",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "Metropolis and Hastings take what is worse",
        f"{_RECIPES}/chains.py",
        "estimate.scale * (loss - loss_other) +",
        "estimate.scale * (loss_other - loss) +",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "a Metropolis step forgets what holds it",
        f"{_RECIPES}/chains.py",
        "(loss - loss_other) + held[0] - held[1]",
        "(loss - loss_other)",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "the score at x_t is not that of x_t",
        f"{_RECIPES}/chains.py",
        "score = (estimate.x0 - y) / square",
        "score = (base - y) / square",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "DAPS flows in s where it says s^2",
        f"{_RECIPES}/chains.py",
        "(then**2 - s**2) / (2 * s**2)",
        "(then - s) / s",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "an absolute rate is in units of what is open",
        f"{_RECIPES}/chains.py",
        "(gradient / size if self.relative else gradient)",
        "gradient / size",
        _part("a_chain_samples_as_its_kind_and_its_prior_say"),
    ),
    Fault(
        "as published DSG takes the mean deviation",
        f"{_RECIPES}/places.py",
        ".flatten(1)[:, :1]",
        ".flatten(1).mean(dim=1, keepdim=True)",
        _part("dsg_as_published_takes_its_radius_from_the_first_entry"),
    ),
    Fault(
        "selections are counted from the first step",
        f"{_RECIPES}/selections.py",
        "(i - self.start) % self.period == 0",
        "i % self.period == 0",
        _choice("particles_are_selected_after_these_steps_and_the_last"),
    ),
    Fault(
        "selections end a step early",
        f"{_RECIPES}/selections.py",
        "i <= self.end)",
        "i < self.end)",
        _choice("particles_are_selected_after_these_steps_and_the_last"),
    ),
    Fault(
        "a branch is drawn by its value times the temperature",
        f"{_RECIPES}/selections.py",
        "torch.softmax(values / self.temperature, dim=0)",
        "torch.softmax(values * self.temperature, dim=0)",
        _choice("a_branch_is_drawn_in_proportion_to_its_value_over_the_temperature"),
    ),
    Fault(
        "as published potentials are multiplied where nothing was resampled",
        f"{_RECIPES}/selections.py",
        "kept = before.product if self.published else gained",
        "kept = gained",
        _choice("particles_are_weighed_as_in_the_published_code"),
    ),
    Fault(
        "the image shown on the way is not that of the best particle",
        f"{_SAMPLING}/selecting.py",
        "self._worth = worth.flatten()[index]",
        "self._worth = worth.flatten()",
        _choice("the_best_particle_is_known_after_it_has_moved_to_another_slot"),
    ),
    Fault(
        "churn has no lower bound",
        f"{_SAMPLING}/solvers.py",
        "cls(amount, float(low or 0), float(high",
        "cls(amount, 0.0, float(high",
        ("tests/test_sampling.py::test_churn_is_read_as_it_is_written",),
    ),
    Fault(
        "churn's noise is always one",
        f"{_SAMPLING}/solvers.py",
        'float(high or "inf"), noise)',
        'float(high or "inf"))',
        ("tests/test_sampling.py::test_churn_is_read_as_it_is_written",),
    ),
    Fault(
        "stages of a cascade share the noise of recipes",
        f"{_SAMPLING}/streams.py",
        "self._shape, self._stage, name)",
        "self._shape, 0, name)",
        (
            "tests/test_streams.py::test_further_noise_of_images_is_of_its_name_their_stage_their_seed_and_their_number",
        ),
    ),
    Fault(
        "the noisiest level of a range is never taught",
        f"{_EXPERTS}/tuning.py",
        "torch.randint(len(self._alpha),",
        "torch.randint(len(self._alpha) - 1,",
        _teaching("every_level_of_a_range_is_taught_as_often"),
    ),
    Fault(
        "predictions are taught at the middle of each part alone",
        f"{_EXPERTS}/tuning.py",
        "torch.rand(parts, generator=drawn)) / parts",
        "0.5) / parts",
        _teaching("every_level_of_a_range_is_taught_as_often"),
    ),
    Fault(
        "a resumed tuning forgets what was best",
        f"{_EXPERTS}/tuning.py",
        "self.best = [math.inf if value is None else value for value in told.best]",
        "self.best = [math.inf for value in told.best]",
        _teaching("a_saved_state_is_all_that_a_tuning_knows"),
    ),
    Fault(
        "a resumed tuning forgets how long it has waited",
        f"{_EXPERTS}/tuning.py",
        "self.finished, self.waited = told.finished, told.waited",
        "self.finished, self.waited = told.finished, [0 for _ in told.waited]",
        _teaching("a_saved_state_is_all_that_a_tuning_knows"),
    ),
    Fault(
        "all experts begin with the same factors",
        f"{_EXPERTS}/tuning.py",
        'word(derived("factors", config.seed, i))',
        'word(derived("factors", config.seed))',
        _teaching("experts_begin_apart_and_as_the_seed_says"),
    ),
    Fault(
        "a seed does not decide the factors",
        f"{_EXPERTS}/tuning.py",
        'word(derived("factors", config.seed, i))',
        'word(derived("factors", i))',
        _teaching("experts_begin_apart_and_as_the_seed_says"),
    ),
    Fault(
        "a harvest is known by its first shard",
        f"{_EXPERTS}/harvest.py",
        "            for i in range(self.shards):\n                found.update(",
        "            for i in range(1):\n                found.update(",
        _teaching("a_harvest_is_known_by_all_its_images"),
    ),
    Fault(
        "a harvest's classes are those of seed 0",
        f"{_EXPERTS}/harvest.py",
        "of_image(seed, k, _CLASSES)",
        "of_image(0, k, _CLASSES)",
        _teaching("prompts_go_round_and_classes_are_of_the_seed"),
    ),
    Fault(
        "a harvest's prompts are one off",
        f"{_EXPERTS}/harvest.py",
        "prompts[k % len(prompts)] for k",
        "prompts[(k + 1) % len(prompts)] for k",
        _teaching("prompts_go_round_and_classes_are_of_the_seed"),
    ),
    Fault(
        "a harvest strengthens its classes at every level",
        _HARVESTING,
        "interval=self.backbone.default_cfg_interval,",
        "",
        _teaching("a_harvest_has_its_classes_only_where_the_backbone_strengthens_them"),
    ),
    Fault(
        "experts of other weights of a backbone are taken",
        "ppap_host/runs/choice.py",
        " == set(file_hashes(backbone.files(), backbone.name).values())",
        " != set()",
        ("tests/test_expert_choice.py::test_a_registered_set_is_for_one_guide_on_one_backbone",),
    ),
    Fault(
        "experts of another backbone are taken",
        "ppap_host/runs/choice.py",
        '            and (metadata.get("harvest") or {}).get("backbone") == backbone.name\n',
        "",
        ("tests/test_expert_choice.py::test_a_registered_set_is_for_one_guide_on_one_backbone",),
    ),
    Fault(
        "a set of any number of experts is taken",
        "ppap_host/runs/choice.py",
        "if count in (None, len(experts.patches)):",
        "if experts.patches:",
        ("tests/test_expert_choice.py::test_a_registered_set_is_for_one_guide_on_one_backbone",),
    ),
    Fault(
        "joined sets say the size of their first expert",
        f"{_EXPERTS}/sets.py",
        '"per_expert": max(counts),',
        '"per_expert": counts[0],',
        ("tests/test_experts.py::test_sets_of_disjoint_ranges_join_and_others_do_not",),
    ),
    Fault(
        "calibrations do not tell ranges of experts apart",
        f"{_EXPERTS}/calibration.py",
        "{part.low!r} {part.high!r} {patch.scaling!r} ",
        "{patch.scaling!r} ",
        ("tests/test_calibration.py::test_calibration_goes_over_experts",),
    ),
    Fault(
        "calibrations do not tell scalings of experts apart",
        f"{_EXPERTS}/calibration.py",
        "{part.low!r} {part.high!r} {patch.scaling!r} ",
        "{part.low!r} {part.high!r} ",
        ("tests/test_calibration.py::test_calibration_goes_over_experts",),
    ),
    Fault(
        "a temperature is measured on the images that it was fitted on",
        _plugin("bench", "calibration/measurement"),
        "((first, second), (second, first)):",
        "((first, first), (second, second)):",
        (
            "tests/test_calibration.py::test_each_half_of_the_images_has_the_temperature_of_the_other",
        ),
    ),
    Fault(
        "temperatures are multiplied with those before",
        "ppap_host/guides/temperatures.py",
        "return self.guide.tempered(joint, marginal)",
        "return self.guide.tempered(joint * self.joint, marginal)",
        _loss("temperatures_weigh_joint_and_marginal"),
    ),
    Fault(
        "functions are taught by a sum",
        "ppap_host/guides/functions.py",
        "(student - teacher).square().reshape(len(student), -1).mean(dim=1)",
        "(student - teacher).square().reshape(len(student), -1).sum(dim=1)",
        _loss("functions_and_rewards_are_taught_by_the_mean_square"),
    ),
    Fault(
        "rewards are taught by a sum",
        "ppap_host/guides/rewards.py",
        "(student - teacher).square().reshape(len(student), -1).mean(dim=1)",
        "(student - teacher).square().reshape(len(student), -1).sum(dim=1)",
        _loss("functions_and_rewards_are_taught_by_the_mean_square"),
    ),
    Fault(
        "the points that a search begins with lie on a line",
        _plugin("bench", "search/study"),
        "_radical_inverse(number, prime)) % 1.0)",
        "_radical_inverse(number, 2 + 0 * prime)) % 1.0)",
        ("tests/test_search.py::test_the_spread_points_are_haltons",),
    ),
    Fault(
        "a quality is chosen as if distance did not count",
        _plugin("bench", "search/score"),
        "weighed = Weights(weights.distance, cost)",
        "weighed = Weights(0.1, cost)",
        (
            "tests/test_search.py::test_a_frontier_holds_what_nothing_beats_and_each_quality_is_one_of_it",
        ),
    ),
    Fault(
        "a rerun does not see that the threads are others",
        "ppap_host/runs/record.py",
        '("device", "machine", "threads")',
        '("device", "machine")',
        ("tests/test_run.py::test_a_record_names_where_it_was_made_as_a_difference",),
    ),
    Fault(
        "a guide of clean images is told the level of a prediction",
        f"{_EXPERTS}/calibration.py",
        "told = None if predicted and not self.guide.knows_predictions else level",
        "told = level",
        ("tests/test_calibration.py::test_a_calibration_of_predictions_is_told_their_level",),
    ),
)
