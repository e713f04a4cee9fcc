"""BibTeX by key. A solver, objective or problem names its sources in `references`; `cite` prints them."""

from __future__ import annotations

from bilevel_rl.errors import InvalidConfig, did_you_mean, message

BIBTEX: dict[str, str] = {
    "zeng2026hessianfree": """@article{zeng2026hessianfree,
  title   = {A Hessian-Free Actor-Critic Algorithm for Bi-Level Reinforcement Learning with Applications to LLM Fine-Tuning},
  author  = {Zeng, Sihan and Bhatt, Sujay and Ganesh, Sumitra and Koppel, Alec},
  journal = {arXiv preprint arXiv:2601.16399},
  year    = {2026}
}""",
    "spall1992spsa": """@article{spall1992spsa,
  title   = {Multivariate stochastic approximation using a simultaneous perturbation gradient approximation},
  author  = {Spall, James C.},
  journal = {IEEE Transactions on Automatic Control},
  volume  = {37},
  number  = {3},
  pages   = {332--341},
  year    = {1992}
}""",
    "shen2024pbrl": """@inproceedings{shen2024pbrl,
  title     = {Principled Penalty-based Methods for Bilevel Reinforcement Learning and {RLHF}},
  author    = {Shen, Han and Yang, Zhuoran and Chen, Tianyi},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}""",
    "yang2025sobirl": """@inproceedings{yang2025sobirl,
  title     = {Bilevel Reinforcement Learning via the Development of Hyper-gradient without Lower-Level Convexity},
  author    = {Yang, Yan and Gao, Bin and Yuan, Ya-xiang},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2025}
}""",
    "towers2024gymnasium": """@article{towers2024gymnasium,
  title   = {Gymnasium: A Standard Interface for Reinforcement Learning Environments},
  author  = {Towers, Mark and others},
  journal = {arXiv preprint arXiv:2407.17032},
  year    = {2024}
}""",
    "agarwal2021precipice": """@inproceedings{agarwal2021precipice,
  title     = {Deep Reinforcement Learning at the Edge of the Statistical Precipice},
  author    = {Agarwal, Rishabh and Schwarzer, Max and Castro, Pablo Samuel and Courville, Aaron and Bellemare, Marc G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
}


def bibtex(*keys: str) -> str:
    """The BibTeX entries of `keys`, in order.

    Raises:
        InvalidConfig: an unknown key.
    """
    for key in keys:
        if key not in BIBTEX:
            raise InvalidConfig(
                message("references", f"the key {key!r}", did_you_mean(key, BIBTEX), "Choose one of these keys")
            )
    return "\n\n".join(BIBTEX[key] for key in dict.fromkeys(keys))
