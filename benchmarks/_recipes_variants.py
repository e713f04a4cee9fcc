"""What the comparison of recipes compares: each family's variants by label, whole recipes, and what is not run and why."""

from __future__ import annotations

from typing import Any

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BASE = "credit=group_norm, loss=policy_gradient"  # what a component is put into

# label -> (slot, recipe, further options of the run)
Variant = tuple[str, str, dict[str, Any]]
TWICE = {"epochs": 2}  # losses that allow for older samples take two gradient steps on a batch
SORT: dict[str, Variant] = {
    "return": ("credit", "credit=return", {}),
    "leave_one_out": ("credit", "credit=leave_one_out", {}),
    "group_norm": ("credit", "credit=group_norm", {}),
    "group_mean": ("credit", "credit=group_mean", {}),
    "batch_norm": ("credit", "credit=batch_norm", {}),
    "reward_to_go": ("credit", "credit=reward_to_go", {}),
    "remax": ("credit", "credit=remax", {}),
    "gae": ("credit", "credit=gae(lam=1.0)", {}),
    "truncated_gae": ("credit", "credit=truncated_gae", {}),
    "optimal_baseline": ("credit", "credit=optimal_baseline", {}),
    "length_baseline": ("credit", "credit=length_baseline", {}),
    "empg": ("credit", "credit=empg(group_norm)", {}),
    "copo": ("credit", "credit=copo(group_norm)", {}),
    "adora": ("credit", "credit=adora(group_norm)", {}),
    "polychromic": ("credit", "credit=polychromic(size=2)", {}),
    "hpt_gate": ("credit", "credit=hpt_gate, loss=hybrid", {"demonstrations": True}),
    "three_terms": ("credit", "credit=group_norm", {"terms": True}),
    "dvao": ("credit", "credit=dvao", {"terms": True}),
    "gdpo": ("credit", "credit=gdpo", {"terms": True}),
    "gpg": ("credit", "credit=gpg", {}),
    "to_go_leave_one_out": ("credit", "credit=to_go_leave_one_out", {}),
    "soft_overlong": ("reward", "reward=soft_overlong, credit=group_norm", {}),
    "g2rl": ("reward", "reward=g2rl, credit=group_norm", {}),
    "win_rate": ("reward", "reward=win_rate, credit=group_norm", {}),
    "ranking_reward": ("reward", "reward=ranking_reward, credit=group_norm", {}),
    "dynamic_sampling": ("select", "select=dynamic_sampling, credit=group_norm", {}),
    "d3s": ("select", "select=d3s, credit=group_norm", {}),
    "pcl": ("select", "select=pcl(share=0.5), credit=group_norm", {}),
    "v0_budget": ("select", "select=v0_budget, credit=group_norm", {}),
    "r3": ("select", "select=replay, credit=replay_credit(group_norm), loss=clipped", {}),
    "choose_nearest": ("rollout", "rollout=choose_nearest, credit=group_norm", {}),
    "spread_budget": ("rollout", "rollout=spread_budget, credit=group_norm", {}),
    "refill": ("rollout", "rollout=refill, credit=group_norm", {}),
    "duration": ("weigh", "credit=group_norm, weigh=duration", {"durations": True}),
    "clip_cov": ("weigh", "credit=group_norm, weigh=clip_cov", {}),
    "d3s_tokens": ("weigh", "credit=group_norm, weigh=d3s_tokens", {}),
    "probability_mask": ("weigh", "credit=group_norm, weigh=probability_mask", {}),
    "high_entropy": ("weigh", "credit=group_norm, weigh=high_entropy", {}),
    "off_policy_mask": ("weigh", "credit=group_norm, weigh=off_policy_mask, loss=clipped", TWICE),
    "policy_gradient_once": ("loss", BASE, {}),
    "clipped": ("loss", "credit=group_norm, loss=clipped", TWICE),
    "clipped_per_sequence": ("loss", "credit=group_norm, loss=clipped(aggregate=per_sequence)", TWICE),
    "clip_higher": ("loss", "credit=group_norm, loss=clipped(high=0.28)", TWICE),
    "gspo": ("loss", "credit=group_norm, loss=gspo", TWICE),
    "cispo": ("loss", "credit=group_norm, loss=cispo", TWICE),
    "sapo": ("loss", "credit=group_norm, loss=sapo", TWICE),
    "vespo": ("loss", "credit=group_norm, loss=vespo", TWICE),
    "unified": ("loss", "credit=group_norm, loss=unified", TWICE),
    "copg": ("loss", "credit=group_norm, loss=copg", TWICE),
    "p3o": ("loss", "credit=group_norm, loss=p3o", TWICE),
    "direct_advantage": ("loss", "credit=group_mean, loss=direct_advantage", TWICE),
    "inpo": ("loss", "credit=group_norm, loss=inpo", TWICE),
    "mdpo": ("loss", "credit=group_norm, loss=mdpo", TWICE),
    "nash_mirror_prox": ("loss", "reward=win_rate, credit=group_norm, loss=nash_mirror_prox", TWICE),
    "exact_kl": ("regular", f"{BASE}, regular=0.01*exact_kl", {}),
    "sampled_kl": ("regular", f"{BASE}, regular=0.01*sampled_kl", {}),
    "entropy": ("regular", f"{BASE}, regular=0.01*entropy", {}),
    "epo": ("regular", f"{BASE}, regular=0.001*epo", {}),
    "kl_cov": ("regular", "credit=group_norm, loss=unified, regular=1.0*kl_cov", TWICE),
    "safe": ("regular", f"{BASE}, regular=1.0*safe", {}),
    "sgd": ("step", f"{BASE}, step=sgd", {"rates": (0.03, 0.1, 0.3, 1.0)}),
    "n_pg_igt": ("step", f"{BASE}, step=n_pg_igt", {"rates": (0.01, 0.03, 0.1, 0.3)}),
    "snr": ("step", f"{BASE}, step=snr", {"rates": (0.03, 0.1, 0.3, 1.0)}),
}  # fmt: skip
WORLD: dict[str, Variant] = {
    "group_norm": ("credit", "credit=group_norm", {}),
    "return": ("credit", "credit=return", {}),
    "leave_one_out": ("credit", "credit=leave_one_out", {}),
    "batch_norm": ("credit", "credit=batch_norm", {}),
    "gae": ("credit", "credit=gae(lam=0.95)", {}),
    "step_level": ("credit", "credit=step_level(lam=0.95)", {}),
    "hierarchical": ("credit", "credit=hierarchical(high=state_values(gamma=0.99))", {}),
    "state_values": ("credit", "credit=state_values", {}),
    "gigpo": ("credit", "credit=episode + 1.0*step_groups", {}),
    "hgpo": ("credit", "credit=hgpo", {}),
    "salt": ("credit", "credit=salt(group_norm)", {}),
    "empg": ("credit", "credit=empg(group_norm)", {}),
    "segment_chain": ("credit", "rollout=prefix_values, credit=segment_chain", {}),
    "segment_tree": ("credit", "rollout=tree, credit=segment_tree", {}),
    "polychromic": ("credit", "rollout=vine, credit=polychromic, weigh=window", {}),
    "subpo": ("reward", "reward=subpo(replace=False), credit=reward_to_go", {}),
    "duration": ("weigh", "credit=group_norm, weigh=duration", {}),
    "capo": ("weigh", "credit=group_norm, weigh=capo", {}),
    "epo": ("regular", f"{BASE}, regular=0.001*epo", {}),
}  # fmt: skip
ARITHMETIC: dict[str, Variant] = {
    name: SORT[name]
    for name in ("group_norm", "leave_one_out", "group_mean", "optimal_baseline", "empg", "dynamic_sampling")
} | {
    "pcl_model": ("rollout", "rollout=choose_nearest(value=prompt_model), credit=group_norm", {}),
    "choose_nearest": ("rollout", "rollout=choose_nearest, credit=group_norm", {}),
    "v0_model": ("rollout", "rollout=spread_budget(value=prompt_model), credit=group_norm", {}),
    "refill": ("rollout", "rollout=refill, credit=group_norm", {}),
}  # fmt: skip
SUMS: dict[str, Variant] = {
    "group_norm": ("credit", "credit=group_norm", {}),
    "spae": ("credit", 'rollout=probe(tail=">"), credit=spae(group_norm)', {}),
    "adhint": ("rollout", "rollout=hint, credit=adhint_credit, weigh=adhint_weight", {}),
    "t_ppo_windows": ("rollout", "t_ppo_windows", {}),
    "gae": ("credit", "credit=gae(lam=0.95)", {}),
    "hpt_gate": ("credit", "credit=hpt_gate, loss=hybrid", {}),
}  # fmt: skip
GAME: dict[str, Variant] = {
    "leave_one_out": ("credit", "credit=leave_one_out", {}),
    "advantage_alignment": ("credit", "credit=advantage_alignment", {}),
}  # fmt: skip
# recipes whose task is another than the text world, in the table in which every named recipe runs once
HOME = {
    "spae": "running_sums", "adhint": "running_sums", "sft": "running_sums", "precision": "running_sums",
    "hpt": "running_sums", "t_ppo_windows": "running_sums", "r3": "running_sums", "advantage_alignment": "prisoners",
    "dvao": "sort", "gdpo": "sort",
}  # fmt: skip
WORLD_RECIPES = (
    "grpo", "gigpo", "hgpo", "salt", "token_rloo", "hiper", "pcl", "segment_tree", "dapo", "vl_dac", "segment_chain", "empg",
)
# whole recipes beside TRL's GRPO, by family, tuned as it is
WHOLE: dict[str, dict[str, str]] = {
    "sort": {
        name: name for name in (
            "grpo", "dr_grpo", "dapo", "gspo", "cispo", "empg", "adora", "reinforce_pp", "mdpo", "p3o", "copg", "clip_cov",
            "kl_cov", "g2rl", "d3s",
        )
    } | {
        "optimal_baseline_clipped": "credit=optimal_baseline, loss=clipped",
        "leave_one_out_clipped": "credit=leave_one_out, loss=clipped",
        "group_norm_clipped": "credit=group_norm, loss=clipped",
        "group_norm_clip_higher": "credit=group_norm, loss=clipped(high=0.28)",
        "nash_mirror_prox": "reward=win_rate, credit=group_norm, loss=nash_mirror_prox",
    },
    "text_world": {name: name for name in WORLD_RECIPES},
}  # fmt: skip
CHOICES: dict[str, list[list[float]]] = {  # gradient steps a batch, and learning rate
    "sort": [[steps, rate] for steps in (1, 2) for rate in RATES],
    "text_world": [[1, rate] for rate in RATES],
}
TWEETS: dict[str, Variant] = {
    name: ("recipe", name, {}) for name in ("reinforce", "rloo", "grpo", "dr_grpo", "d3s", "opo")
}
# what no family here runs, and why
ELSEWHERE = ("awm",)  # recipes of flows: benchmarks/flows.py
NOT_RUN = {
    "advantage_matching": "a flow's: benchmarks/flows.py", "velocity_gap": "a flow's: benchmarks/flows.py",
    "harpg": "needs Hessian-vector products, which the trainer does not take",
    "kl_reward": "the trainer's own tau", "adam": "the trainer's own optimizer",
}  # fmt: skip

TABLES = {  # family -> its variants
    "sort": SORT, "text_world": WORLD, "arithmetic": ARITHMETIC, "running_sums": SUMS, "prisoners": GAME, "tweets": TWEETS,
}  # fmt: skip
BASELINES = {"prisoners": "leave_one_out", "tweets": "rloo"}  # others: group_norm
# seconds of processor time that a run takes, about
SECONDS = {"sort": 2.5, "text_world": 4.0, "arithmetic": 1.5, "running_sums": 5.0, "prisoners": 2.0, "tweets": 4.5}
