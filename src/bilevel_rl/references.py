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
    "haarnoja2018sac": """@article{haarnoja2018sac,
  title   = {Soft Actor-Critic Algorithms and Applications},
  author  = {Haarnoja, Tuomas and Zhou, Aurick and Hartikainen, Kristian and Tucker, George and Ha, Sehoon and Tan, Jie and
             Kumar, Vikash and Zhu, Henry and Gupta, Abhishek and Abbeel, Pieter and Levine, Sergey},
  journal = {arXiv preprint arXiv:1812.05905},
  year    = {2018}
}""",
    "zheng2018lirpg": """@inproceedings{zheng2018lirpg,
  title     = {On Learning Intrinsic Rewards for Policy Gradient Methods},
  author    = {Zheng, Zeyu and Oh, Junhyuk and Singh, Satinder},
  booktitle = {Advances in Neural Information Processing Systems},
  note      = {arXiv:1804.06459},
  year      = {2018}
}""",
    "ozalp2026stac": """@article{ozalp2026stac,
  title   = {Stochastic Actor-Critic: Mitigating Overestimation via Temporal Aleatoric Uncertainty},
  author  = {Ozalp, Ugurcan},
  journal = {arXiv preprint arXiv:2601.00737},
  year    = {2026}
}""",
    "ishuov2024symphony": """@misc{ishuov2024symphony,
  title = {Symphony: A Heuristic Normalized Calibrated Advantage Actor and Critic Algorithm in application for Humanoid
           Robots},
  author = {Ishuov, Timur and others},
  note  = {Code: https://github.com/timurgepard/Simphony}
}""",
    "patel2024srl": """@article{patel2024srl,
  title   = {Overcoming Slow Decision Frequencies in Continuous Control: Model-Based Sequence Reinforcement Learning for
             Model-Free Control},
  author  = {Patel, Devdhar and Siegelmann, Hava},
  journal = {arXiv preprint arXiv:2410.08979},
  year    = {2024}
}""",
    "ren2021pmoe": """@article{ren2021pmoe,
  title   = {Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning},
  author  = {Ren, Jie and Li, Yewen and Ding, Zihan and Pan, Wei and Dong, Hao},
  journal = {arXiv preprint arXiv:2104.09122},
  year    = {2021}
}""",
    "chang2024ailboost": """@article{chang2024ailboost,
  title   = {Adversarial Imitation Learning via Boosting},
  author  = {Chang, Jonathan D. and Sreenivas, Dhruv and Huang, Yingbing and Brantley, Kiante and Sun, Wen},
  journal = {arXiv preprint arXiv:2404.08513},
  year    = {2024}
}""",
    "faldor2023dcg": """@article{faldor2023dcg,
  title   = {{MAP-Elites} with Descriptor-Conditioned Gradients and Archive Distillation into a Single Policy},
  author  = {Faldor, Maxence and Chalumeau, F{\\'e}lix and Flageat, Manon and Cully, Antoine},
  journal = {arXiv preprint arXiv:2303.03832},
  year    = {2023}
}""",
    "acflow2025": """@misc{acflow2025,
  title         = {Fine-tuning Flow Matching Generative Models with Intermediate Feedback},
  eprint        = {2510.18072},
  archivePrefix = {arXiv},
  year          = {2025}
}""",
    "ctrl2024": """@misc{ctrl2024,
  title = {Adding Conditional Control to Diffusion Models with Reinforcement Learning}
}""",
    "gpc2025": """@misc{gpc2025,
  title = {Compose Your Policies! Improving Diffusion-based or Flow-based Robot Policies via Test-time Distribution-level
           Composition}
}""",
    "fujimoto2021td3bc": """@inproceedings{fujimoto2021td3bc,
  title     = {A Minimalist Approach to Offline Reinforcement Learning},
  author    = {Fujimoto, Scott and Gu, Shixiang Shane},
  booktitle = {Advances in Neural Information Processing Systems},
  note      = {arXiv:2106.06860},
  year      = {2021}
}""",
    "kostrikov2021iql": """@article{kostrikov2021iql,
  title   = {Offline Reinforcement Learning with Implicit {Q}-Learning},
  author  = {Kostrikov, Ilya and Nair, Ashvin and Levine, Sergey},
  journal = {arXiv preprint arXiv:2110.06169},
  year    = {2021}
}""",
    "tarasov2023rebrac": """@inproceedings{tarasov2023rebrac,
  title     = {Revisiting the Minimalist Approach to Offline Reinforcement Learning},
  author    = {Tarasov, Denis and Kurenkov, Vladislav and Nikulin, Alexander and Kolesnikov, Sergey},
  booktitle = {Advances in Neural Information Processing Systems},
  note      = {arXiv:2305.09836},
  year      = {2023}
}""",
    "park2025fql": """@article{park2025fql,
  title   = {Flow {Q}-Learning},
  author  = {Park, Seohong and Li, Qiyang and Levine, Sergey},
  journal = {arXiv preprint arXiv:2502.02538},
  year    = {2025}
}""",
    "mao2024odice": """@article{mao2024odice,
  title   = {{ODICE}: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update},
  author  = {Mao, Liyuan and Xu, Haoran and Zhang, Weinan and Zhan, Xianyuan},
  journal = {arXiv preprint arXiv:2402.00348},
  year    = {2024}
}""",
    "liu2024a2pr": """@article{liu2024a2pr,
  title   = {Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning},
  author  = {Liu, Tenglong and Li, Yang and Lan, Yixing and Gao, Hao and Pan, Wei and Xu, Xin},
  journal = {arXiv preprint arXiv:2405.19909},
  year    = {2024}
}""",
    "li2025dqc": """@misc{li2025dqc,
  title  = {Decoupled {Q}-Chunking},
  author = {Li, Qiyang and Park, Seohong and Levine, Sergey},
  note   = {Code: https://github.com/ColinQiyangLi/dqc},
  year   = {2025}
}""",
    "lv2024decisionmamba": """@article{lv2024decisionmamba,
  title   = {Decision {Mamba}: A Multi-Grained State Space Model with Self-Evolution Regularization for Offline {RL}},
  author  = {Lv, Qi and Deng, Xiang and Chen, Gongwei and Wang, Michael Yu and Nie, Liqiang},
  journal = {arXiv preprint arXiv:2406.05427},
  year    = {2024}
}""",
    "mark2024parl": """@article{mark2024parl,
  title   = {Policy Agnostic {RL}: Offline {RL} and Online {RL} Fine-Tuning of Any Class and Backbone},
  author  = {Mark, Max Sobol and Gao, Tian and Sampaio, Georgia Gabriela and Srirama, Mohan Kumar and Sharma, Archit and
             Finn, Chelsea and Kumar, Aviral},
  journal = {arXiv preprint arXiv:2412.06685},
  year    = {2024}
}""",
    "nakamoto2023calql": """@article{nakamoto2023calql,
  title   = {{Cal-QL}: Calibrated Offline {RL} Pre-Training for Efficient Online Fine-Tuning},
  author  = {Nakamoto, Mitsuhiko and Zhai, Yuexiang and Singh, Anikait and Mark, Max Sobol and Ma, Yi and Finn, Chelsea and
             Kumar, Aviral and Levine, Sergey},
  journal = {arXiv preprint arXiv:2303.05479},
  year    = {2023}
}""",
    "liu2024directadvantage": """@article{liu2024directadvantage,
  title   = {Improving Multi-Step Reasoning Abilities of Large Language Models with Direct Advantage Policy Optimization},
  author  = {Liu, Jiacai and Wang, Chaojie and Liu, Chris Yuhao and Zeng, Liang and Yan, Rui and Sun, Yiwen and Liu, Yang and
             Zhou, Yahui},
  journal = {arXiv preprint arXiv:2412.18279},
  year    = {2024}
}""",
    "le2019batch": """@inproceedings{le2019batch,
  title     = {Batch Policy Learning under Constraints},
  author    = {Le, Hoang M. and Voloshin, Cameron and Yue, Yisong},
  booktitle = {International Conference on Machine Learning},
  note      = {arXiv:1903.08738},
  year      = {2019}
}""",
    "xue2025awm": """@misc{xue2025awm,
  title = {Advantage Weighted Matching: Aligning {RL} with Pretraining in Diffusion Models},
  note  = {Code: https://github.com/scxue/advantage_weighted_matching}
}""",
    "liu2025flowgrpo": """@misc{liu2025flowgrpo,
  title         = {{Flow-GRPO}: Training Flow Matching Models via Online {RL}},
  eprint        = {2505.05470},
  archivePrefix = {arXiv},
  year          = {2025}
}""",
    "black2023ddpo": """@article{black2023ddpo,
  title   = {Training Diffusion Models with Reinforcement Learning},
  author  = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
  journal = {arXiv preprint arXiv:2305.13301},
  year    = {2023}
}""",
    "nachum2017bridging": """@inproceedings{nachum2017bridging,
  title     = {Bridging the Gap Between Value and Policy Based Reinforcement Learning},
  author    = {Nachum, Ofir and Norouzi, Mohammad and Xu, Kelvin and Schuurmans, Dale},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017}
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
    "thoma2024hpgd": """@inproceedings{thoma2024hpgd,
  title     = {Contextual Bilevel Reinforcement Learning for Incentive Alignment},
  author    = {Thoma, Vinzenz and Pasztor, Barna and Krause, Andreas and Ramponi, Giorgia and Hu, Yifan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}""",
    "bchg2026": """@inproceedings{bchg2026,
  title     = {Sample-Efficient Hypergradient Estimation for Decentralized Bi-Level Reinforcement Learning},
  author    = {Kudo, Mikoto and Tanabe, Takumi and Wachi, Akifumi and Akimoto, Youhei},
  booktitle = {International Conference on Automated Planning and Scheduling},
  year      = {2026}
}""",
    "shen2023vpbgd": """@inproceedings{shen2023vpbgd,
  title     = {On Penalty-based Bilevel Gradient Descent Method},
  author    = {Shen, Han and Chen, Tianyi},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}""",
    "chen2022amd": """@inproceedings{chen2022amd,
  title     = {Adaptive Model Design for {Markov} Decision Process},
  author    = {Chen, Siyu and Yang, Donglin and Li, Jiayang and Wang, Senmiao and Yang, Zhuoran and Wang, Zhaoran},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}""",
    "chakraborty2024parl": """@inproceedings{chakraborty2024parl,
  title     = {{PARL}: A Unified Framework for Policy Alignment in Reinforcement Learning from Human Feedback},
  author    = {Chakraborty, Souradip and Bedi, Amrit Singh and Koppel, Alec and Wang, Huazheng and others},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}""",
    "kwon2023f2sa": """@inproceedings{kwon2023f2sa,
  title     = {A Fully First-Order Method for Stochastic Bilevel Optimization},
  author    = {Kwon, Jeongyeol and Kwon, Dohyun and Wright, Stephen and Nowak, Robert},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}""",
    "pedregosa2016hyperparameter": """@inproceedings{pedregosa2016hyperparameter,
  title     = {Hyperparameter optimization with approximate gradient},
  author    = {Pedregosa, Fabian},
  booktitle = {International Conference on Machine Learning},
  year      = {2016}
}""",
    "ghadimi2018approximation": """@article{ghadimi2018approximation,
  title   = {Approximation Methods for Bilevel Programming},
  author  = {Ghadimi, Saeed and Wang, Mengdi},
  journal = {arXiv preprint arXiv:1802.02246},
  year    = {2018}
}""",
    "nesterov2017random": """@article{nesterov2017random,
  title   = {Random Gradient-Free Minimization of Convex Functions},
  author  = {Nesterov, Yurii and Spokoiny, Vladimir},
  journal = {Foundations of Computational Mathematics},
  volume  = {17},
  pages   = {527--566},
  year    = {2017}
}""",
    "flaxman2005bandit": """@inproceedings{flaxman2005bandit,
  title     = {Online convex optimization in the bandit setting: gradient descent without a gradient},
  author    = {Flaxman, Abraham D. and Kalai, Adam Tauman and McMahan, H. Brendan},
  booktitle = {ACM-SIAM Symposium on Discrete Algorithms},
  year      = {2005}
}""",
    "jamieson2016hyperband": """@inproceedings{jamieson2016hyperband,
  title     = {Non-stochastic Best Arm Identification and Hyperparameter Optimization},
  author    = {Jamieson, Kevin and Talwalkar, Ameet},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2016}
}""",
    "ziebart2010causal": """@phdthesis{ziebart2010causal,
  title  = {Modeling Purposeful Adaptive Behavior with the Principle of Maximum Causal Entropy},
  author = {Ziebart, Brian D.},
  school = {Carnegie Mellon University},
  year   = {2010}
}""",
    "hu2020shaping": """@inproceedings{hu2020shaping,
  title     = {Learning to Utilize Shaping Rewards: A New Approach of Reward Shaping},
  author    = {Hu, Yujing and Wang, Weixun and Jia, Hangtian and others},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
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
    "naik2024reward": """@article{naik2024reward,
  title     = {Reward centering},
  author    = {Naik, Abhishek and Wan, Yi and Tomar, Manan and Sutton, Richard S.},
  journal   = {Reinforcement Learning Journal},
  year      = {2024},
  eprint    = {2405.09999},
  archivePrefix = {arXiv}
}""",
    "agarwal2020model": """@inproceedings{agarwal2020model,
  title     = {Model-based reinforcement learning with a generative model is minimax optimal},
  author    = {Agarwal, Alekh and Kakade, Sham and Yang, Lin F.},
  booktitle = {Conference on Learning Theory},
  year      = {2020},
  eprint    = {1906.03804},
  archivePrefix = {arXiv}
}""",
    "williams1992reinforce": """@article{williams1992reinforce,
  title   = {Simple statistical gradient-following algorithms for connectionist reinforcement learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992}
}""",
    "robbins1951stochastic": """@article{robbins1951stochastic,
  title   = {A Stochastic Approximation Method},
  author  = {Robbins, Herbert and Monro, Sutton},
  journal = {The Annals of Mathematical Statistics},
  volume  = {22},
  number  = {3},
  pages   = {400--407},
  year    = {1951}
}""",
    "kingma2015adam": """@inproceedings{kingma2015adam,
  title     = {Adam: A Method for Stochastic Optimization},
  author    = {Kingma, Diederik P. and Ba, Jimmy},
  booktitle = {International Conference on Learning Representations},
  year      = {2015}
}""",
    "schulman2016gae": """@inproceedings{schulman2016gae,
  title     = {High-Dimensional Continuous Control Using Generalized Advantage Estimation},
  author    = {Schulman, John and Moritz, Philipp and Levine, Sergey and Jordan, Michael I. and Abbeel, Pieter},
  booktitle = {International Conference on Learning Representations},
  year      = {2016}
}""",
    "schulman2017ppo": """@article{schulman2017ppo,
  title   = {Proximal Policy Optimization Algorithms},
  author  = {Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg},
  journal = {arXiv preprint arXiv:1707.06347},
  year    = {2017}
}""",
    "ziegler2019finetuning": """@article{ziegler2019finetuning,
  title   = {Fine-Tuning Language Models from Human Preferences},
  author  = {Ziegler, Daniel M. and others},
  journal = {arXiv preprint arXiv:1909.08593},
  year    = {2019}
}""",
    "ahmadian2024rloo": """@article{ahmadian2024rloo,
  title   = {Back to Basics: Revisiting {REINFORCE} Style Optimization for Learning from Human Feedback in {LLMs}},
  author  = {Ahmadian, Arash and others},
  journal = {arXiv preprint arXiv:2402.14740},
  year    = {2024}
}""",
    "shao2024deepseekmath": """@article{shao2024deepseekmath,
  title   = {{DeepSeekMath}: Pushing the Limits of Mathematical Reasoning in Open Language Models},
  author  = {Shao, Zhihong and others},
  journal = {arXiv preprint arXiv:2402.03300},
  year    = {2024}
}""",
    "yu2025dapo": """@article{yu2025dapo,
  title   = {{DAPO}: An Open-Source {LLM} Reinforcement Learning System at Scale},
  author  = {Yu, Qiying and others},
  journal = {arXiv preprint arXiv:2503.14476},
  year    = {2025}
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
