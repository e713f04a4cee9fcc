"""Steps: exact transport on quadratics, unbiased Hessian-vector products, lengths, limits, torch's own
optimisers.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.steps import HARPG, SGD, Adam, ImplicitTransport, SignalToNoise
from bilevel_rl.policy_gradient.steps.momentum import hessian_vector
from bilevel_rl.policy_gradient.steps.plain import inner, norm
from bilevel_rl.policy_gradient.steps.signal_to_noise import signal_and_noise
from bilevel_rl.schedules import PowerDecay


def random_tensors(seed):
    g = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, generator=g).double(), "b": torch.randn(2, 2, generator=g).double()}


def quadratic(seed=0):
    """Gradient of x'Hx/2 - c'x on the concatenation of both tensors."""
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(7, 7, generator=g).double()
    h, c = m @ m.T + torch.eye(7).double(), torch.randn(7, generator=g).double()

    def gradient(x):
        flat = torch.cat([x["a"], x["b"].flatten()])
        out = h @ flat - c
        return {"a": out[:3], "b": out[3:].reshape(2, 2)}

    return gradient, h


def test_sgd_is_torchs_with_the_schedule():
    x, step = random_tensors(0), SGD(PowerDecay(0.1, 0.5))
    state = step.init(x)
    for k in range(4):
        g = random_tensors(k + 1)
        new, state = step.step(state, x, g)
        torch.testing.assert_close(new["a"], x["a"] - 0.1 / (k + 1) ** 0.5 * g["a"], rtol=1e-13, atol=0)
        x = new
    assert state["k"] == 4


def test_adam_is_torchs():
    x = random_tensors(0)
    theirs = {k: torch.nn.Parameter(v.clone()) for k, v in x.items()}
    optimiser = torch.optim.Adam(theirs.values(), lr=3e-3, betas=(0.85, 0.95), eps=1e-7)
    step = Adam(PowerDecay(3e-3, 0.0), (0.85, 0.95), 1e-7)
    state = step.init(x)
    for k in range(5):
        g = random_tensors(k + 1)
        x, state = step.step(state, x, g)
        for name, p in theirs.items():
            p.grad = g[name].clone()
        optimiser.step()
    for name in x:
        torch.testing.assert_close(x[name], theirs[name].detach(), rtol=1e-12, atol=1e-15)


# -- 2 implicit transport -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9, 1.0])
def test_on_a_quadratic_the_transported_momentum_is_the_exact_gradient(eta):
    gradient, _ = quadratic()
    step = ImplicitTransport(PowerDecay(0.05, 0.5), eta=eta)
    x = random_tensors(1)
    state = step.init(x)
    for _ in range(12):
        here = x
        x, state = step.step(state, x, gradient(step.query(state, x)))
        exact = gradient(here)
        for name in x:
            torch.testing.assert_close(state[f"direction.{name}"], exact[name], rtol=1e-10, atol=1e-11)
    plain = {k: 0.1 * v for k, v in exact.items()}
    assert norm(plain) > 0


def test_steps_have_their_length_and_full_share_is_normalised_sgd():
    x, step = random_tensors(0), ImplicitTransport(PowerDecay(0.3, 0.5), eta=1.0)
    state = step.init(x)
    for k in range(3):
        g = random_tensors(k + 5)
        new, state = step.step(state, x, g)
        moved = {n: new[n] - x[n] for n in x}
        assert float(norm(moved)) == pytest.approx(0.3 / (k + 1) ** 0.5, rel=1e-12)
        torch.testing.assert_close(moved["a"], -(0.3 / (k + 1) ** 0.5) * g["a"] / norm(g), rtol=1e-10, atol=0)
        x = new
    zero = {n: torch.zeros_like(v) for n, v in x.items()}
    stay, _ = ImplicitTransport(eta=1.0).step(step.init(x), x, zero)
    assert torch.equal(stay["a"], x["a"])


def test_impossible_options_are_refused():
    for bad in (lambda: ImplicitTransport(eta=0.0), lambda: HARPG(eta=1.5), lambda: SignalToNoise(decay=1.0)):
        with pytest.raises(InvalidConfig, match=r"eta|decay"):
            bad()


# -- HARPG --------------------------------------------------------------------------------------------------


def test_mean_correction_over_q_is_the_change_of_the_gradient():
    """A cubic objective, so that the Hessian varies: Gauss-Legendre over q of H(between) u = g(x) -
    g(previous).
    """
    g = torch.Generator().manual_seed(0)
    t = torch.randn(4, 4, 4, generator=g).double()

    def value(x):
        return torch.einsum("ijk,i,j,k->", t, x, x, x)

    previous, x = torch.randn(4, generator=g).double(), torch.randn(4, generator=g).double()
    u = x - previous
    nodes = 0.5 + 0.5 * 0.6**0.5 * torch.tensor([-1, 0, 1], dtype=torch.float64)
    weights = torch.tensor([5, 8, 5], dtype=torch.float64) / 18
    total = torch.zeros(4).double()
    for q, w in zip(nodes, weights, strict=True):
        at = (q * x + (1 - q) * previous).requires_grad_()
        total += w * torch.autograd.functional.hvp(value, at, u)[1]
    exact = torch.autograd.functional.jacobian(value, x) - torch.autograd.functional.jacobian(value, previous)
    torch.testing.assert_close(total, exact, rtol=1e-8, atol=1e-8)


def test_points_between_are_on_the_segment_and_uniform():
    x = {"a": torch.ones(1).double()}
    step = HARPG(seed=5)
    qs = []
    for k in range(400):
        state = {**step.init({"a": torch.zeros(1).double()}), "k": torch.tensor(k)}
        point, change = step.between(state, x)
        assert change["a"].item() == 1
        qs.append(point["a"].item())
    q = torch.tensor(qs)
    assert q.min() >= 0
    assert q.max() < 1
    assert abs(q.mean().item() - 0.5) < 4.5 * (1 / 12 / 400) ** 0.5


def test_hessian_vector_product_is_unbiased_by_enumeration():
    """Two-step softmax policy on 3 tokens: mean of the estimate over all sequences = exact Hessian times
    u.
    """
    g = torch.Generator().manual_seed(0)
    theta, u = torch.randn(2, 3, generator=g).double(), torch.randn(2, 3, generator=g).double()
    reward = torch.randn(9, generator=g).double()
    sequences = list(itertools.product(range(3), repeat=2))

    def objective(x):
        law = x.log_softmax(-1)
        return sum((law[0, i] + law[1, j]).exp() * reward[k] for k, (i, j) in enumerate(sequences))

    exact = torch.autograd.functional.hvp(objective, theta, u)[1]
    law = theta.log_softmax(-1)
    mean = torch.zeros(2, 3).double()
    for k, (i, j) in enumerate(sequences):
        likelihood = lambda p, i=i, j=j: p["x"].log_softmax(-1)[0, i] + p["x"].log_softmax(-1)[1, j]  # noqa: E731
        surrogate = lambda p, f=likelihood, r=reward[k]: r * f(p)  # noqa: E731
        estimate = hessian_vector(surrogate, likelihood, {"x": theta}, {"x": u})["x"]
        mean += (law[0, i] + law[1, j]).exp() * estimate
    torch.testing.assert_close(mean, exact, rtol=1e-10, atol=1e-12)


def test_harpg_on_a_quadratic_keeps_the_exact_gradient():
    gradient, h = quadratic(2)
    step = HARPG(PowerDecay(0.02, 0.5), eta=0.3)
    x = random_tensors(3)
    state = step.init(x)
    for _ in range(8):
        _, change = step.between(state, x)
        flat = h @ torch.cat([change["a"], change["b"].flatten()])
        correction = {"a": flat[:3], "b": flat[3:].reshape(2, 2)}
        exact = gradient(x)
        x, state = step.step(state, x, exact, correction)
        torch.testing.assert_close(state["direction.a"], exact["a"], rtol=1e-10, atol=1e-11)


# -- 3 signal to noise --------------------------------------------------------------------------------------


def test_signal_and_noise_are_unbiased():
    """Halves = mean gradient + noise of variance s^2 a coordinate: within 4.5 standard errors."""
    g = torch.Generator().manual_seed(0)
    truth, s = torch.tensor([1.0, -2.0]).double(), 0.7
    signals, noises = [], []
    for _ in range(4000):
        one, two = ({"x": truth + s * torch.randn(2, generator=g).double()} for _ in range(2))
        a, b = signal_and_noise(one, two)
        signals.append(a)
        noises.append(b)
    for values, expected in ((signals, 5.0), (noises, 2 * s**2 / 2)):
        v = torch.tensor(values).double()
        assert abs(v.mean().item() - expected) < 4.5 * v.std().item() / len(v) ** 0.5


def test_snr_step_limits():
    step = SignalToNoise(PowerDecay(0.5, 0.0), decay=0.0)
    x = {"x": torch.zeros(2).double()}
    g = {"x": torch.tensor([1.0, 1.0]).double()}
    sure, state = step.step(step.init(x), x, g, g)
    assert sure["x"].tolist() == [-0.5, -0.5]
    assert step.factor(state) == 1
    opposite = {"x": -g["x"]}
    stay, state = step.step(step.init(x), x, g, opposite)
    assert stay["x"].tolist() == [0, 0]
    assert step.factor(state) == 0
    grid = [{"signal": torch.tensor(s), "noise": torch.tensor(1.0)} for s in (0.0, 0.1, 1.0, 10.0, 1e6)]
    factors = [step.factor(state) for state in grid]
    assert factors == sorted(factors)
    assert factors[0] >= 0
    assert factors[-1] <= 1


def test_snr_step_maximises_the_ascent_lemmas_bound():
    signal, noise, smooth = 2.0, 3.0, 4.0
    best = max(
        torch.linspace(0, 1, 10001).tolist(),
        key=lambda eta: eta * signal - smooth * eta**2 / 2 * (signal + noise),
    )
    state = {"signal": torch.tensor(signal), "noise": torch.tensor(noise)}
    assert SignalToNoise().factor(state) / smooth == pytest.approx(best, abs=1e-4)
    assert inner({"a": torch.ones(2)}, {"a": torch.ones(2)}) == 2
