"""On an accelerator: the same numbers as on the CPU, for every engine; steps captured; resumed to the same bits.

    pytest -m gpu
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_rl.records import read_status

sys.path.insert(0, str(Path(__file__).parent / "llm"))

from llm_models import config, gpt2, llama, trainer, untimed, weights

from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.sampling import captured, decoding
from bilevel_rl.llm.sampling.sampler import Sampler, inverse_cdf, race, uniforms

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator"),
    pytest.mark.filterwarnings("default"),  # its libraries are of other versions than those that we pin
]  # fmt: skip
PADDED = [Prompt(tuple(range(3, 3 + n)), None) for n in (4, 2, 3, 1, 4, 2)]
METHODS = {
    "shared": {"estimator": "shared"}, "tilted": {"estimator": "tilted"}, "paired": {"estimator": "paired"},
    "fisher": {"estimator": "fisher"}, "partial_sgd": {"method": "partial_sgd"}, "nested": {"method": "nested"},
    "recipe": {"estimator": "tilted", "recipe": "actor_critic", "epochs": 2},
    "parts": {"estimator": "shared", "micro_batch": 4},
}  # fmt: skip


# -- writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_captured_step_gives_the_logits_of_the_plain_one(make):
    model, tokens = make().double().cuda(), torch.tensor([[7, 8], [9, 10], [11, 12], [3, 4], [5, 6]]).cuda()
    ids, attention = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]]).cuda(), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).cuda()
    decoder, plain = decoding.make_decoder(model, 5), decoding.PrefixDecoder(model)
    assert isinstance(decoder, captured.StaticDecoder)
    with torch.no_grad():
        found, right = (
            torch.stack([d.start(ids, attention), *(d.next(t).clone() for t in tokens)]) for d in (decoder, plain)
        )
    assert decoder.graph is not None
    torch.testing.assert_close(found, right, atol=1e-11, rtol=0)


@pytest.mark.parametrize("choose", [inverse_cdf, race])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_same_uniforms_write_the_same_texts_on_both_devices(make, choose):
    model, u = make().double(), uniforms(6, 9, 0)
    here = Sampler((1,), pad_id=2, choose=choose)(model, PADDED, u)
    there = Sampler((1,), pad_id=2, choose=choose)(model.cuda(), PADDED, u)
    assert here.completion_ids() == there.completion_ids()
    # transformers computes rotary angles in 32 bits whatever the model's precision
    torch.testing.assert_close(here.logp, there.logp.cpu(), atol=1e-10 if make is gpt2 else 1e-5, rtol=0)


def test_a_graph_follows_weights_that_move_between_rollouts_and_adapters_that_are_switched():
    it = trainer(steps=2, device="cuda", dtype="float64", backend="lora", estimator="paired", alpha=0.3, lora_rank=2)
    it.train()
    for role in ("policy", "policy_l"):
        with it.roles.model(role) as model:
            rollout = Sampler((), pad_id=2, dtype="float64")(model, PADDED, uniforms(6, 5, 1))
            with torch.no_grad():
                logits = model(input_ids=rollout.ids, attention_mask=rollout.attention,
                               position_ids=(rollout.attention.cumsum(1) - 1).clamp(min=0)).logits  # fmt: skip
        logp = logits.log_softmax(-1)[:, 3:-1].gather(-1, rollout.completions[..., None])[..., 0]
        torch.testing.assert_close(rollout.logp, logp, atol=1e-6, rtol=0)


# -- two levels of a language model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["full", "lora"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_same_on_both_devices(name, backend):
    found = []
    for device in ("cpu", "cuda"):
        it = trainer(device=device, dtype="float64", backend=backend, optimizer="sgd", **METHODS[name])
        it.train()
        found.append((untimed(it.history), {k: v.cpu() for k, v in weights(it).items()}))
    (here, mine), (there, theirs) = found
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in a], [b[k] for k in a], rtol=1e-6, atol=1e-8)
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("changes", [{}, {"backend": "lora", "dtype": "bfloat16", "weights": "bfloat16"}], ids=["32", "16"])
def test_a_run_that_is_resumed_on_a_gpu_has_the_same_bits(tmp_path, changes):
    options = {"device": "cuda", "estimator": "tilted", "save_every": 1} | changes
    whole = trainer(steps=4, **options)
    whole.train()
    for steps in (2, 4):
        part = trainer(steps=steps, out=str(tmp_path), resume=steps == 4, **options)
        part.train()
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(part)[key]), key


@pytest.mark.parametrize("estimator", ["tilted", "shared", "paired", "fisher"])
def test_sixteen_bits_train(estimator):
    it = trainer(
        steps=3, device="cuda", estimator=estimator, backend="lora", dtype="bfloat16", weights="bfloat16",
        gradient_checkpointing=True, micro_batch=8, policy=llama(),
    )  # fmt: skip
    before = weights(it)
    it.train()
    assert all(np.isfinite(v) for line in it.history for v in line.values())
    assert any(not torch.equal(value, before[key]) for key, value in weights(it).items())


@pytest.mark.parametrize("backend", ["lora", "full"])
def test_weights_in_pieces_train_as_whole_ones(backend, tmp_path):
    """FSDP2 over NCCL on as many GPUs as there are, by the command line, and one process without."""
    place, found = _place(tmp_path), []
    for sharded in (True, False):
        out = tmp_path / f"sharded_{sharded}"
        launcher = ["accelerate.commands.launch", "--num_processes", str(torch.cuda.device_count() if sharded else 1),
                    "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
        launcher += ["--use_fsdp", "--fsdp_version", "2"] if sharded else ["--num_machines", "1"]
        command = [sys.executable, "-m", *launcher, "-m", "bilevel_rl", "llm", "train", str(place), f"out={out}"]
        command.append(f"backend={backend}")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert read_status(out)["state"] == "finished"
        found.append([untimed([json.loads(line)])[0] for line in (out / "metrics.jsonl").read_text().splitlines()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose([a[k] for k in sorted(a)], [b[k] for k in sorted(b)], rtol=1e-6, atol=1e-8)


def _place(home: Path) -> Path:
    """A model, a tokenizer of words, prompts and a configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["pad", "end", *"abcdefghij"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="pad"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="pad", eos_token="end", unk_token="pad")
    tokenizer.save_pretrained(home / "model")
    gpt2(vocab_size=len(words), bos_token_id=1, eos_token_id=1, pad_token_id=0).save_pretrained(home / "model")
    (home / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("a b", "c", "d e a", "b")))
    (home / "gold.py").write_text(
        "def sevens(prompts, completions, **_):\n    return [float(c.count('f') + c.count('g')) for c in completions]\n"
    )
    values = {
        "policy": str(home / "model"), "prompts": str(home / "prompts.jsonl"), "gold": f"{home / 'gold.py'}:sevens",
        "backend": "lora", "steps": 3, "objective": {"gold": 1.0}, "dtype": "float64", "optimizer": "sgd",
        "estimator": "tilted", "alpha": 0.1, "zeta": 0.1,
        "sampling": {"prompts_per_step": 4, "group": 2, "max_new_tokens": 5},
    }  # fmt: skip
    path = home / "config.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def test_what_a_gpu_has_trained_is_read_on_a_cpu(tmp_path):
    it = trainer(steps=2, device="cuda", estimator="tilted", out=str(tmp_path))
    it.train()
    here = trainer(steps=3, device="cpu", estimator="tilted", out=str(tmp_path), resume=True)
    assert here.step == 2
    for key, value in weights(it).items():
        torch.testing.assert_close(value.cpu(), weights(here)[key], rtol=0, atol=0)
    assert config().device == "auto"


# -- tables and neural followers ------------------------------------------------------------------------------------------


def _both(call):
    """What a call gives on JAX's accelerator and on the CPU."""
    import jax

    try:
        there = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX here knows no GPU")
    found = []
    for device in (there, jax.devices("cpu")[0]):
        with jax.default_device(device):
            found.append(call())
    return found


@pytest.mark.parametrize("name", ["ExactQuasiNewton", "CoupledPenalty", "PenaltyActorCritic", "CertaintyEquivalence"])
def test_a_run_on_tables_is_the_same_on_both_devices(name):
    from bilevel_rl.finite import solvers
    from bilevel_rl.finite.problems import GoalPlacement
    from bilevel_rl.loop import solve

    many = 4 if name == "ExactQuasiNewton" else 40
    there, here = _both(lambda: solve(GoalPlacement(), getattr(solvers, name)(), runs=2, iterations=many, record_every=many))
    np.testing.assert_allclose(there.x, here.x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(there.metrics["objective"], here.metrics["objective"], rtol=1e-6, atol=1e-9)


def test_oracles_are_the_same_on_both_devices():
    import jax.numpy as jnp

    from bilevel_rl.finite import oracles
    from bilevel_rl.finite.problems import RandomMDP

    def call():
        problem = RandomMDP(states=40, actions=3)
        x = jnp.asarray(problem.x0) + 0.1
        return [float(oracles.hyper_objective(problem, x, 0.1)), np.asarray(oracles.hyper_gradient(problem, x, 0.1))]

    there, here = _both(call)
    np.testing.assert_allclose(there[0], here[0], rtol=1e-9)
    np.testing.assert_allclose(there[1], here[1], rtol=1e-7, atol=1e-10)


def test_a_neural_follower_learns_on_a_gpu():
    from bilevel_rl.control.problems import BoundedShaping
    from bilevel_rl.control.solvers import Covariance
    from bilevel_rl.loop import solve

    there, here = _both(lambda: solve(BoundedShaping(), Covariance(), iterations=40, record_every=20, runs=2))
    assert np.isfinite(there.x).all()
    assert there.x.shape == here.x.shape
    np.testing.assert_allclose(there.x, here.x, atol=0.02)  # single precision: sums in another order
