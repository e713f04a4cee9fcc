"""The page `components.md`: every component with the figure it is held to, its test, who feeds it, and whether it acts.

    python docs/hooks/components.py > docs/components.md

What is known of a component stands on its card; what it is held to stands here, and a test looks that each is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bilevel_rl.policy_gradient.component import needs_of, parts
from bilevel_rl.policy_gradient.recipes import ALL, COMPONENTS
from bilevel_rl.policy_gradient.setting import Setting, configured, idle

JSON = "figures of the release (tests/data/released)"
TRL = "TRL 1.16, value and gradient"
RELEASED, BESIDE_TRL, UNBIASED = "test_released.py", "test_trl.py", "test_unbiased.py"
CREDIT, LOSSES, REGULAR = "test_credit.py", "test_losses.py", "test_regularizers.py"
REWARD, WEIGH, STEPS, WRITING = "test_reward.py", "test_weigh_select.py", "test_steps.py", "test_writing.py"

# component -> (what it is held to, test file, test): tests of a definition are by the published formula, worked out anew
EVIDENCE: dict[str, tuple[str, str, str]] = {
    "choose_nearest": ("definition", "test_rollout.py", "test_the_starts_nearest_to_one_half_are_written_and_no_others"),
    "spread_budget": ("brute force", "test_rollout.py",
                      "test_rows_go_where_they_promise_contrast_and_their_number_is_that_of_the_iteration"),
    "prompt_model": ("unseen starts", WRITING, "test_a_value_model_of_starts_learns_what_it_has_not_seen_and_chooses_by_it"),
    "refill": ("definition", "test_rollout.py", "test_refill_has_the_next_starts_to_spare"),
    "prefix_values": ("Monte Carlo", WRITING,
                      "test_prefix_values_are_means_of_rows_that_go_on_and_telescope_to_the_reward"),
    "tree": ("definition", WRITING, "test_a_tree_shares_beginnings_level_by_level"),
    "vine": ("definition", WRITING, "test_all_rows_of_a_vine_go_on_from_one_state"),
    "hint": ("definition", WRITING, "test_hints_are_longer_for_harder_starts_and_none_without_a_solution"),
    "windows": ("definition", WRITING, "test_windows_go_on_until_a_row_is_finished_and_every_token_is_new_once"),
    "probe": ("definition", WRITING, "test_probes_stand_at_every_token_of_their_step"),
    "kl_reward": ("exact truth", UNBIASED, "test_the_regularised_truth_is_another_one"),
    "soft_overlong": ("definition", REWARD, "test_soft_overlong_by_length"),
    "subpo": ("exact gradient", REWARD, "test_submodular_policy_gradient_is_the_exact_one"),
    "g2rl": ("autograd", REWARD, "test_sensitivity_is_the_gradient_in_the_hidden_states"),
    "win_rate": ("minimax winner", REWARD, "test_self_play_finds_the_minimax_winner_and_drops_the_dominated"),
    "ranking_reward": ("by hand", REWARD, "test_ranking_reward_by_hand"),
    "d3s": ("brute force", WEIGH, "test_most_varied_is_the_brute_force_optimum"),
    "dynamic_sampling": ("definition", WEIGH, "test_dynamic_sampling_drops_only_undecided_groups"),
    "pcl": ("definition", WEIGH, "test_pcl_with_exact_values_picks_the_most_variable_prompts"),
    "v0_budget": ("brute force", WEIGH, "test_allocation_is_exhaustively_best_where_the_utility_is_concave"),
    "replay": ("definition", WEIGH, "test_replay_adds_the_opposite_outcome_only_where_there_is_no_variance"),
    "leave_one_out": (TRL, BESIDE_TRL, "test_advantages_are_trls"),
    "return": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "remax": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "group_norm": (TRL, BESIDE_TRL, "test_advantages_are_trls"),
    "group_mean": (TRL, BESIDE_TRL, "test_advantages_are_trls"),
    "batch_norm": ("definition", "test_basics.py", "test_batch_norm_has_mean_zero_and_deviation_one"),
    "gae": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "optimal_baseline": ("least variance", CREDIT, "test_optimal_baseline_minimises_the_second_moment_of_the_gradient"),
    "length_baseline": (JSON, RELEASED, "test_opo_is_verls"),
    "empg": ("definition", CREDIT, "test_empg_scaling_has_mean_one_and_falls_with_entropy"),
    "copo": ("definition", CREDIT, "test_copo_learns_where_group_norm_cannot"),
    "adora": (JSON, RELEASED, "test_adora_is_the_text_releases"),
    "truncated_gae": ("limits", CREDIT, "test_truncated_gae_is_gae_on_finished_responses"),
    "hierarchical": ("definition", CREDIT, "test_hae_is_its_definition"),
    "dvao": ("closed form", CREDIT, "test_dvao_closed_form_and_bound"),
    "salt": ("limits", CREDIT, "test_salt_of_identical_trajectories_is_the_group_mean_and_sums_are_preserved"),
    "spae": ("definition", CREDIT, "test_spae_shaping_telescopes_and_vanishes_without_its_knobs"),
    "advantage_alignment": ("definition", CREDIT, "test_alignment_is_the_double_sum_and_nothing_without_beta"),
    "hgpo": (JSON, RELEASED, "test_hgpo_is_the_releases"),
    "step_level": ("limits", CREDIT, "test_gae_hae_and_vl_dac_agree_in_their_limits"),
    "polychromic": ("by hand", CREDIT, "test_polychromic_by_hand"),
    "segment_chain": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "segment_tree": ("unbiased", UNBIASED, "test_segment_tree_is_unbiased"),
    "hpt_gate": ("limits", CREDIT, "test_gate_extremes_are_pure_rl_and_pure_sft"),
    "adhint_credit": ("limits", CREDIT, "test_hint_credit_compares_apart_and_discounts_what_a_hint_made_easy"),
    "replay_credit": ("definition", CREDIT, "test_replay_credit_scales_only_replayed_rows"),
    "reward_to_go": ("by hand", CREDIT, "test_reward_to_go_by_hand"),
    "episode": (JSON, RELEASED, "test_gigpo_is_the_releases_sum"),
    "step_groups": (JSON, RELEASED, "test_gigpo_is_the_releases_sum"),
    "sum": ("definition", CREDIT, "test_sums_of_credit_are_sums"),
    "gpg": ("definition", CREDIT, "test_gpg_scales_up_by_the_rows_that_teach"),
    "gdpo": (TRL, BESIDE_TRL, "test_advantages_are_trls"),
    "to_go_leave_one_out": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "state_values": ("unbiased", UNBIASED, "test_credit_is_unbiased"),
    "duration": ("the race undone", WEIGH, "test_duration_weights_undo_the_race_exactly"),
    "clip_cov": ("definition", WEIGH, "test_clip_cov_drops_exactly_its_share_of_candidates_and_at_least_one"),
    "d3s_tokens": ("definition", WEIGH, "test_d3s_tokens_keeps_exactly_its_share"),
    "capo": ("third order", WEIGH, "test_curvature_predictions_are_right_to_third_order"),
    "adhint_weight": ("definition", WEIGH, "test_hint_tokens_never_push_down_and_others_are_untouched"),
    "window": ("definition", WEIGH, "test_windows_train_every_token_exactly_once"),
    "probability_mask": ("limits", CREDIT, "test_chain_limits"),
    "high_entropy": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "off_policy_mask": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "policy_gradient": ("unbiased", UNBIASED, "test_loss_is_unbiased_on_policy"),
    "supervised": ("textbook losses", LOSSES, "test_unified_settings_are_the_textbook_losses"),
    "clipped": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "gspo": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "cispo": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "unified": ("textbook losses", LOSSES, "test_unified_settings_are_the_textbook_losses"),
    "copg": ("known optimum", LOSSES, "test_copg_off_policy_reaches_the_regularised_optimum"),
    "p3o": ("by pairs", LOSSES, "test_p3o_off_policy_by_pairs"),
    "direct_advantage": ("known optimum", LOSSES, "test_direct_advantage_optimum_on_a_table"),
    "inpo": ("known step", LOSSES, "test_inpo_population_gradient_is_zero_at_the_mirror_descent_step"),
    "precision": ("limits", LOSSES, "test_precision_without_its_knobs_is_cross_entropy"),
    "mdpo": ("known optimum", LOSSES, "test_mdpo_optimum_on_a_table_and_its_first_gradient"),
    "nash_mirror_prox": ("known equilibrium", LOSSES,
                         "test_mirror_prox_converges_at_its_last_iterate_where_multiplicative_weights_do_not"),
    "hybrid": ("limits", CREDIT, "test_gate_extremes_are_pure_rl_and_pure_sft"),
    "sapo": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "vespo": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "advantage_matching": (
        "pre-training", "test_matching.py", "test_with_advantage_one_its_gradient_is_that_of_pre_training",
    ),
    "velocity_gap": ("definition", "test_matching.py", "test_the_pull_to_a_reference_is_the_mean_gap"),
    "exact_kl": ("enumeration", "test_basics.py", "test_kl_estimators_by_enumeration"),
    "sampled_kl": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "entropy": (TRL, BESIDE_TRL, "test_loss_and_gradient_are_trls"),
    "epo": (JSON, RELEASED, "test_epo_phase_is_the_releases"),
    "kl_cov": ("definition", REGULAR, "test_kl_cov_touches_the_top_tokens_and_at_least_one"),
    "safe": (JSON, RELEASED, "test_safe_is_the_releases_controller_over_130_steps"),
    "sgd": ("torch.optim", STEPS, "test_sgd_is_torchs_with_the_schedule"),
    "adam": ("torch.optim", STEPS, "test_adam_is_torchs"),
    "n_pg_igt": ("exact gradient", STEPS, "test_on_a_quadratic_the_transported_momentum_is_the_exact_gradient"),
    "harpg": ("enumeration", STEPS, "test_hessian_vector_product_is_unbiased_by_enumeration"),
    "snr": ("unbiased", STEPS, "test_signal_and_noise_are_unbiased"),
}  # fmt: skip

DEFAULT = Setting(epochs=1, group=4, max_new_tokens=32, turns=False)  # a configuration that says nothing
# fields that every run of a language model has, whatever its task
ALWAYS = {
    "reward", "group", "logp", "old", "ref", "entropy", "kl", "advantage", "weight", "completions", "target", "logits",
    "hidden", "score_norm", "sensitivity", "baseline", "answer", "prompt_value", "start_features", "winner", "replayed",
}
COLUMNS = {
    "demonstrations": "column `demonstration`", "demonstration": "column `demonstration`",
    "gold_answers": "column `answer`",
}
HEADER = """# Components: what each is held to

Made by `python docs/hooks/components.py > docs/components.md` from the declarations in the code.

**Held to**: figures that a release gave, TRL's own code on random masks and uneven groups, or the published definition,
worked out anew in the test. **Fed by**: what a run needs beside prompts and a reward. *Nothing*: every run has it;
`rollout=` generates it; a field is the task's to know (`task: {fields: ...}`; shipped tasks have them). **At defaults**:
whether it acts in a configuration that says nothing (one gradient step a batch, one turn); where it does not, the trainer
says so before training. **Formula**: *INFERRED* stands for "in the spirit of", until somebody compares.

| Component | # | Held to | Test | Fed by | At defaults | Formula |
|---|---|---|---|---|---|---|
"""


def fed_by(component: Any) -> str:
    """What a run needs for it."""
    cards = [cls.card for cls in COMPONENTS]  # type: ignore[attr-defined]
    given = {field: card.name for card in cards if card.slot == "rollout" for field in card.gives}
    words: list[str] = []
    for part in parts(component):
        for field in needs_of(part):
            if field in given:
                words.append(f"`rollout={given[field]}`")
            elif field in COLUMNS:
                words.append(COLUMNS[field])
            elif field == "value":
                words.append("a critic, which comes with it")
            elif field not in ALWAYS:
                words.append(f"field `{field}`")
    return ", ".join(dict.fromkeys(words)) or "nothing"


def rows() -> Iterator[str]:
    """A line for each component."""
    for cls in COMPONENTS:
        component = configured(cls(), DEFAULT)
        card = component.card
        held, file, test = EVIDENCE[card.name]
        reasons = [one.partition(": ")[2].split(".")[0] for one in idle(component, DEFAULT)]
        name = f"`{file.removesuffix('.py')}`: {test.removeprefix('test_').replace('_', ' ')}"
        cells = (
            f"`{card.name}`", "" if card.number is None else str(card.number), held, name, fed_by(component),
            "acts" if not reasons else f"does not: {reasons[0]}", str(card.status),
        )  # fmt: skip
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render() -> str:
    """The page."""
    known = [cls.card for cls in COMPONENTS]  # type: ignore[attr-defined]
    inferred = sorted(card.name for card in known if card.status == "INFERRED")
    held = [EVIDENCE[card.name][0] for card in known]
    words = (
        f"\n{len(known)} components, {len(ALL)} named recipes. Held to a release's figures: {held.count(JSON)}; "
        f"to TRL's code: {held.count(TRL)}. Still INFERRED: {', '.join(f'`{name}`' for name in inferred)}.\n"
    )
    return HEADER + "\n".join(rows()) + "\n" + words


if __name__ == "__main__":
    print(render(), end="")
