"""The generator over vLLM's protocol, against a loopback server that samples from the weights it was sent."""

from __future__ import annotations

import json

import pytest
import torch
from llm_models import gpt2, trainer, weights
from llm_servers import serving
from llm_spawn import run_together
from safetensors.torch import load_file

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.estimators import off_policy
from bilevel_rl.llm.http import EndpointFailed
from bilevel_rl.llm.vllm import VllmGenerator


class Server:
    """Speaks the four endpoints; `skew` makes its law another than the policy's."""

    def __init__(self, skew: float = 0.0):
        self.skew, self.model, self.names = skew, None, []

    def __call__(self, path, body, headers):
        if path == "/v1/load_lora_adapter":
            from peft import AutoPeftModelForCausalLM

            self.names.append(body["lora_name"])
            self.model = AutoPeftModelForCausalLM.from_pretrained(body["lora_path"]).eval()
            return 200, b"Success", {}
        if path == "/v1/unload_lora_adapter":
            self.names.remove(body["lora_name"])
            return 200, b"Success", {}
        if path == "/collective_rpc":
            assert body == {"method": "reload_weights"}
            self.model = type(gpt2()).from_pretrained(self.folder).eval()
            return 200, {"results": [None]}, {}
        if path == "/reset_prefix_cache":
            return 200, b"", {}
        return 200, self.complete(body), {}

    @torch.no_grad()
    def complete(self, body):
        generator = torch.Generator().manual_seed(body["seed"])
        ids, logps = list(body["prompt"]), []
        for _ in range(body["max_tokens"]):
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1] / body["temperature"]
            logits[7] += self.skew
            law = logits.log_softmax(-1)
            token = int(torch.multinomial(law.exp(), 1, generator=generator))
            ids.append(token)
            logps.append(float(law[token]))
            if token in body["stop_token_ids"]:
                break
        tokens = ids[len(body["prompt"]) :]
        return {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logps},
                             "finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length"}]}  # fmt: skip


def run(tmp_path, server, **changes):
    with serving(server) as (url, seen):
        server.folder = str(tmp_path / "run/generator")
        made = trainer(
            estimator="tilted", generator=f"vllm:{url}", out=str(tmp_path / "run"), steps=2, prompts_per_step=2,
            pairs_per_step=2, max_new_tokens=4, **changes,
        )  # fmt: skip
        made.train()
    return made, seen


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT asks by the former name
@pytest.mark.parametrize("backend", ["lora", "full"])
def test_the_server_writes_with_the_policys_own_weights(tmp_path, backend):
    server = Server()
    made, seen = run(tmp_path, server, backend=backend)
    paths = [path for path, _, _ in seen]
    assert paths.count("/v1/completions") == 2 * 8
    sent = paths.count("/v1/load_lora_adapter" if backend == "lora" else "/collective_rpc")
    assert sent == 2  # once an iteration: the weights have moved
    if backend == "lora":
        assert len(server.names) == 1
    # the same weights, the same law: what it says of its tokens is what the trainer computes
    assert all(line["sampler_gap"] < 1e-5 for line in made.history)
    assert all(line["sampler_clipped"] == 0 for line in made.history)
    bodies = [body for path, body, _ in seen if path == "/v1/completions"]
    assert len({body["seed"] for body in bodies}) == len(bodies)  # rows of one prompt differ
    assert all(body["top_p"] == 1.0 and body["return_token_ids"] for body in bodies)
    header = json.loads((tmp_path / "run/run.json").read_text())
    assert header["config"]["generator"].startswith("vllm:")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
@pytest.mark.parametrize("more", [{"backend": "lora"}, {"backend": "full", "fsdp": True}], ids=["adapters", "pieces"])
def test_two_processes_write_by_one_server_as_one_does(tmp_path, more):
    """Each asks for its own rows, the main one sends the weights, gathered where they are in pieces."""
    found, sent = [], []
    for count in (1, 2):
        server, folder = Server(), tmp_path / str(count)
        folder.mkdir()
        with serving(server) as (url, seen):
            server.folder = str(folder / "run/generator")
            options = {"estimator": "tilted", "dtype": "float64", "optimizer": "sgd", "alpha": 0.1, "zeta": 0.1}
            options |= {"generator": f"vllm:{url}", "out": str(folder / "run"), "max_new_tokens": 4, "steps": 2} | more
            run_together(count, options, folder)
        found += [load_file(folder / f"rank{rank}.safetensors") for rank in range(count)]
        paths = [path for path, _, _ in seen]
        sent.append({path: paths.count(path) for path in paths})
    assert sent[0] == sent[1]
    for key, value in found[0].items():
        assert torch.equal(found[1][key], found[2][key]), key
        torch.testing.assert_close(found[1][key], value, atol=1e-6, rtol=1e-6)


def test_another_law_is_corrected_and_its_mismatch_logged(tmp_path):
    made, _ = run(tmp_path, Server(skew=1.0), objective="label_likelihood")
    assert made.history[0]["sampler_gap"] > 0.05
    assert made.engine.foreign


def test_the_corrected_gradient_is_the_policys_own_on_average():
    """Tokens of q with truncated ratios p/q: within the bound the mean is p's, beyond it C times q's."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    q = torch.tensor([0.4, 0.5, 0.1], dtype=torch.double)
    value = torch.tensor([1.0, -2.0, 3.0], dtype=torch.double)
    ones = torch.ones(1, 3, dtype=torch.double)
    whole = off_policy(p.log()[None], q.log()[None], ones, clip=4.0)[0]
    torch.testing.assert_close((q * whole * value).sum(), (p * value).sum())
    cut = off_policy(p.log()[None], q.log()[None], ones, clip=1.5)[0]
    torch.testing.assert_close(q * cut, torch.minimum(p, 1.5 * q))


def test_the_reference_is_sampled_at_home(tmp_path):
    server = Server()
    with serving(server) as (url, seen):
        server.folder = str(tmp_path / "there")
        made = trainer(estimator="tilted", generator=f"vllm:{url}", generator_folder=str(tmp_path / "there"))
        with made.roles.model("reference") as model:
            made.generator(model, made.prompts[:1], torch.rand(1, 3, dtype=torch.double))
        assert seen == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [({"choices": [{"text": "hello"}]}, "return_token_ids: vLLM 0.10.2 and later"),
     ({"choices": [{"token_ids": [3], "logprobs": {"token_logprobs": []}}]}, "1 ids and 0 log-probabilities")],
)  # fmt: skip
def test_an_older_server_is_named(tmp_path, answer, says):
    def old(path, body, headers):
        return (200, answer, {}) if path == "/v1/completions" else (200, b"", {})

    with serving(old) as (url, _):
        made = trainer(estimator="tilted", generator=f"vllm:{url}", generator_folder=str(tmp_path / "there"))
        with pytest.raises(EndpointFailed, match=says):
            made.train()


def test_what_a_server_cannot_do_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="the server holds one policy"):
        trainer(estimator="paired", generator="vllm:http://127.0.0.1:9", out=str(tmp_path))
    with pytest.raises(InvalidConfig, match="weights reach the server through a folder"):
        trainer(estimator="tilted", generator="vllm:http://127.0.0.1:9")
    with pytest.raises(InvalidConfig, match=r"Write vllm:http://HOST:PORT"):
        trainer(generator="sglang:http://x")
    assert VllmGenerator.foreign
    assert weights(trainer())
