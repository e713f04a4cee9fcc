r"""A server that speaks vLLM's protocol as the one who writes.

Rows go out as requests of their own, each with its seed (a function of the run's numbers), and come back as token ids with
the log-probabilities of the law that sampled. That law is not quite the policy's: other kernels and precision. The learner
corrects each token by the ratio $\min(\pi_\theta/\pi_{\text{server}}, C)$, and the run logs how far the two are apart.

Weights reach the server through a folder that both see: as an adapter (`/v1/load_lora_adapter`, with `backend: lora`), or
as a whole model that the server serves from that folder (`/collective_rpc` with `reload_weights`).

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank 16
    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER

References:
    Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025 (truncated importance).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import POLICIES
from bilevel_rl.levels.processes import Processes
from bilevel_rl.llm import http
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.roles.backend import FullRoles, LoraRoles, Roles
from bilevel_rl.llm.roles.weights import export_policy
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, pad_prompts
from bilevel_rl.llm.sampling.sampler import Generator

KIND = "vllm:"
TOGETHER = 64  # ours: requests under way at once; the server batches them


class VllmGenerator:
    """Completions by a server; see the module's head.

    Args:
        url: of the server.
        roles: whose policy it serves.
        own: our sampler, for what the server does not hold (the reference, theta^L).
        version: what stands for the weights as they are now; the server gets them again when it has changed.
        folder: seen by both, through which weights go.
        stop_ids, pad_id, temperature, tokenizer: as for `Sampler`.
        timeout, tries: of a request.
        processes: this one and its peers; the main one sends the weights. None: it is alone.

    Attributes:
        foreign: rows come from another law than the policy's own.
    """

    foreign = True

    def __init__(
        self, url: str, roles: Roles, own: Generator, version: Callable[[], Any], folder: str | Path,
        stop_ids: Sequence[int], pad_id: int, temperature: float = 1.0, tokenizer: Any = None, timeout: float = 600.0,
        tries: int = 4, processes: Processes | None = None,
    ) -> None:  # fmt: skip
        self.processes = processes
        self.url, self.roles, self.own, self.version = http.address(url, "config.generator"), roles, own, version
        self.folder = Path(folder).resolve()
        self.stop_ids, self.pad_id, self.temperature, self.tokenizer = tuple(stop_ids), pad_id, temperature, tokenizer
        self.timeout, self.tries = timeout, tries
        self.sent: Any = None
        self.served = ""

    def __call__(self, model: Any, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Sample one completion of each prompt; see `Generator`."""
        if not self._serves(model):
            return self.own(model, prompts, uniforms)
        self.synchronise()
        horizon = uniforms.shape[1]
        seeds = (uniforms[:, 0].double() * 2**31).long().tolist()
        with ThreadPoolExecutor(min(TOGETHER, len(prompts))) as pool:
            rows = list(pool.map(lambda pair: self._row(pair[0], pair[1], horizon), zip(prompts, seeds, strict=True)))
        device = next(model.parameters()).device
        ids, attention = pad_prompts(prompts, self.pad_id, device)
        longest = max(len(tokens) for tokens, _ in rows)
        completion = torch.tensor([t + [self.pad_id] * (longest - len(t)) for t, _ in rows], device=device)
        logp = torch.tensor([p + [0.0] * (longest - len(p)) for _, p in rows], device=device)
        lengths = torch.tensor([len(tokens) for tokens, _ in rows], device=device)
        ended = torch.tensor([tokens[-1] in self.stop_ids for tokens, _ in rows], device=device)
        return assemble(prompts, ids, attention, completion, lengths, ended, logp, tokenizer=self.tokenizer)

    def _serves(self, model: Any) -> bool:
        """Whether a model is theta as it is called now."""
        if isinstance(self.roles, LoraRoles):
            return self.roles.active == POLICIES[0]
        return isinstance(self.roles, FullRoles) and model is self.roles.modules[POLICIES[0]]

    # -- weights ----------------------------------------------------------------------------------------------------

    def synchronise(self) -> None:
        """Send theta where the server does not have it yet: the main process does, and all wait for it."""
        version = self.version()
        if version == self.sent:
            return
        main, failure = self.processes is None or self.processes.main, None  # type: bool, Exception | None
        adapter = f"policy-{version}" if isinstance(self.roles, LoraRoles) else ""
        place = self.folder / adapter
        export_policy(self.roles, place, None if adapter else self.tokenizer, write=main)
        if main:
            try:
                self._load(adapter, place)
            except http.EndpointFailed as error:
                failure = error
        if self.processes is not None:
            self.processes.agree({}, failure)
        elif failure is not None:
            raise failure
        self.served, self.sent = adapter or str(self.folder), version

    def _load(self, adapter: str, place: Path) -> None:
        """Tell the server of the weights in a folder."""
        if not adapter:
            self._post("/collective_rpc", {"method": "reload_weights"})
            self._post("/reset_prefix_cache", {})
            return
        self._post("/v1/load_lora_adapter", {"lora_name": adapter, "lora_path": str(place)})
        if self.served:
            self._post("/v1/unload_lora_adapter", {"lora_name": self.served})
            shutil.rmtree(self.folder / self.served, ignore_errors=True)

    # -- a row --------------------------------------------------------------------------------------------------------

    def _row(self, prompt: Prompt, seed: int, horizon: int) -> tuple[list[int], list[float]]:
        """Token ids of a completion, its end token among them, and their log-probabilities."""
        answer = self._post("/v1/completions", {
            "model": self.served, "prompt": list(prompt.ids), "max_tokens": horizon, "temperature": self.temperature,
            "top_p": 1.0, "top_k": -1, "seed": seed, "n": 1, "logprobs": 0, "return_token_ids": True,
            "stop_token_ids": list(self.stop_ids), "skip_special_tokens": False,
        })  # fmt: skip
        try:
            choice = answer["choices"][0]
            tokens = [int(i) for i in choice["token_ids"]]
            logp = [float(p) for p in choice["logprobs"]["token_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise http.EndpointFailed(
                message(f"{self.url}/v1/completions", f"an answer without ids or log-probabilities ({error!r})",
                        "each choice has token_ids and logprobs.token_logprobs (return_token_ids: vLLM 0.10.2 and later)",
                        "Update the server")
            ) from error  # fmt: skip
        if not tokens or len(tokens) != len(logp) or len(tokens) > horizon:
            raise http.EndpointFailed(
                message(f"{self.url}/v1/completions", f"{len(tokens)} ids and {len(logp)} log-probabilities",
                        f"equally many, 1 to {horizon}", "Check the server's version")
            )  # fmt: skip
        return tokens, logp

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return http.post(f"{self.url}{path}", body, timeout=self.timeout, tries=self.tries)


def made_generator(config: Config, trainer: Any, own: Generator) -> VllmGenerator:
    """The generator that a configuration names.

    Raises:
        InvalidConfig: no folder, or a method whose second policy writes too.
    """
    if config.algorithm.own_rows:
        raise InvalidConfig(
            message("config.generator", f"{config.generator!r} with estimator={config.estimator}",
                    "the server holds one policy", "Choose estimator tilted, fisher or shared")
        )  # fmt: skip
    folder = config.generator_folder or (str(Path(config.out) / "generator") if config.out else "")
    if not folder:
        raise InvalidConfig(
            message("config.generator_folder", "nothing", "weights reach the server through a folder that both see",
                    "Set sampling.generator_folder, or out")
        )  # fmt: skip
    return VllmGenerator(
        config.generator.removeprefix(KIND), trainer.roles, own, lambda: trainer.updates, folder, trainer.stop_ids,
        trainer.pad_id, config.temperature, trainer.tokenizer, processes=trainer.processes,
    )  # fmt: skip
