"""The five step-size, penalty and temperature sequences, and the order the theory asks of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from bilevel_rl.errors import InvalidConfig, message


class Unstated(float):
    """A default that gives way to the problem's own number; a number that a user states is none, and is kept.

    It calculates like the number it stands in for. `Solver.on` puts the problem's in its place.

    Example:
        >>> Unstated(0.05) * 2, isinstance(0.05, Unstated)
        (0.1, False)
    """

    def __hash__(self) -> int:
        """Another than the number's: a cache that knows values by equality and hash must not give one for the other."""
        return hash(("unstated", float(self)))


TEMPERATURE = Unstated(0.05)  # of a solver that is told none, on a problem that has none


@dataclasses.dataclass(frozen=True)
class PowerDecay:
    r"""A sequence $v_k = v_0 / (k+1)^p$.

    Args:
        initial: $v_0 > 0$, in the unit of the quantity.
        power: $p \ge 0$; 0 keeps the sequence constant.
        floor: the sequence never falls below this value (0: the paper's pure power).

    Example:
        >>> PowerDecay(0.1, 0.5)(3)
        0.05
    """

    initial: Any = 1.0
    power: Any = 0.0
    floor: Any = 0.0

    def __call__(self, k: Any) -> Any:
        """Value at iteration `k` (a number or an array of any array library)."""
        value = self.initial / (k + 1) ** self.power
        # max(value, floor) without naming an array library
        return value * (value >= self.floor) + self.floor * (value < self.floor)

    def check(self, where: str) -> None:
        """Raise unless the sequence is positive, finite and does not increase."""
        for name, allowed, good in (
            ("initial", "it must be a finite number above 0", lambda v: math.isfinite(v) and v > 0),
            ("power", "it must be a finite number of at least 0 (a schedule may not increase)", _non_negative),
            ("floor", "it must be a finite number of at least 0", _non_negative),
        ):
            value = getattr(self, name)
            if not good(float(value)):
                raise InvalidConfig(message(f"{where}.{name}", value, allowed, f"Set {where}.{name} accordingly"))


SHAPES = ("power", "constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class Annealed(PowerDecay):
    r"""A power decay that rises over the first iterations and then falls to a share of itself by the last.

    $$v_k = \frac{v_0}{(k+1)^p}\, \min\Big(1, \frac{k+1}{W}\Big)\, s\Big(\frac{k - W}{K - W}\Big)$$

    with s one of 1 (`power`, `constant`), $1 - (1-e)\,u$ (`linear`) and $e + (1-e)\frac{1 + \cos \pi u}{2}$ (`cosine`),
    u within [0, 1]. `constant` is `power` with p = 0 by name.

    Args:
        steps: K, iterations of the run.
        shape: of `SHAPES`.
        warmup: W, iterations of the rise; 0: none.
        end: e, share of the value that is left at the end.

    Example:
        >>> rise = Annealed(0.1, steps=10, shape="linear", warmup=2)
        >>> [round(rise(k), 4) for k in (0, 1, 2, 6, 9)]
        [0.05, 0.1, 0.1, 0.05, 0.0125]
    """

    steps: int = 1
    shape: str = "power"
    warmup: int = 0
    end: float = 0.0

    def __call__(self, k: Any) -> Any:
        """Value at iteration `k`."""
        value = super().__call__(k)
        if self.warmup:
            value = value * min(1.0, (k + 1) / self.warmup)
        u = min(1.0, max(0.0, (k - self.warmup) / max(1, self.steps - self.warmup)))
        if self.shape == "linear":
            return value * (1 - (1 - self.end) * u)
        if self.shape == "cosine":
            return value * (self.end + (1 - self.end) * (1 + math.cos(math.pi * u)) / 2)
        return value


def _non_negative(value: float) -> bool:
    return math.isfinite(value) and value >= 0


class Sequences(NamedTuple):
    """The five sequences at one iteration, by the paper's letters."""

    zeta: Any
    alpha: Any
    beta: Any
    w: Any
    tau: Any


@dataclasses.dataclass(frozen=True)
class TimeScales:
    r"""The five sequences $\zeta_k$ (x), $\alpha_k$ (actors), $\beta_k$ (critics), $w_k$ (penalty), $\tau_k$ (entropy).

    Each is $v_0/(k+1)^p$. A smaller $w$ is a stronger penalty ($L = f - J/w$); $\tau$ is in units of reward.

    Example:
        >>> TimeScales.attenuating(zeta=0.1, alpha=0.5, beta=0.5, w=1.0, tau=0.05).at(0).w
        1.0

    References:
        arXiv 2601.16399, the exponents 9/10, 1/2, 1/2, 3/20, 1/20.
    """

    zeta: PowerDecay = PowerDecay(0.1, 9 / 10)
    alpha: PowerDecay = PowerDecay(1.0, 1 / 2)
    beta: PowerDecay = PowerDecay(0.5, 1 / 2)
    w: PowerDecay = PowerDecay(1.0, 3 / 20)
    tau: PowerDecay = PowerDecay(TEMPERATURE, 1 / 20)

    @classmethod
    def attenuating(
        cls, zeta: float = 0.1, alpha: float = 1.0, beta: float = 0.5, w: float = 1.0, tau: float = TEMPERATURE
    ) -> TimeScales:
        """The paper's exponents for the unregularised problem: entropy fades away; O(eps^-10) samples."""
        return cls(
            PowerDecay(zeta, 9 / 10), PowerDecay(alpha, 1 / 2), PowerDecay(beta, 1 / 2),
            PowerDecay(w, 3 / 20), PowerDecay(tau, 1 / 20),
        )  # fmt: skip

    @classmethod
    def constant_entropy(
        cls, zeta: float = 0.1, alpha: float = 1.0, beta: float = 0.5, w: float = 1.0, tau: float = TEMPERATURE
    ) -> TimeScales:
        """Exponents 2/3, 2/3, 2/3, 1/6, 0 (derived) for the regularised problem; O(eps^-3) samples."""
        return cls(
            PowerDecay(zeta, 2 / 3), PowerDecay(alpha, 2 / 3), PowerDecay(beta, 2 / 3),
            PowerDecay(w, 1 / 6), PowerDecay(tau, 0.0),
        )  # fmt: skip

    @classmethod
    def steady_critics(
        cls, discount: float, zeta: float = 0.5, beta: float = 0.2, w: float = 20.0, tau: float = TEMPERATURE,
        w_power: float = 3 / 20,
    ) -> TimeScales:  # fmt: skip
        r"""Followers that keep up with x: critics and actors at constant steps, $\alpha = (1-\gamma)\,\beta$ (ours).

        With the exponent 1/2 critics have all but stopped while x still moves, and what the followers lag behind is divided
        by w (`docs/claims.md`). zeta falls with exponent 7/10, w and tau as in the paper. For rewards of the size of 1;
        meant for common random numbers, momentum .9 and averaging 4.

        Args:
            w_power: exponent of w. The paper's 3/20 is what its limit asks for; with 0 (ours) what is divided by w does not
                grow, and 30 seeds of 30 end well where 3/20 keeps 23 to 25 (goal position; level on the distribution).

        Example:
            >>> TimeScales.steady_critics(discount=0.95).alpha(10**6)
            0.010000000000000009
            >>> TimeScales.steady_critics(discount=0.95, w_power=0.0).w(10**6)
            20.0
        """
        return cls(
            PowerDecay(zeta, 7 / 10), PowerDecay((1 - discount) * beta), PowerDecay(beta),
            PowerDecay(w, w_power), PowerDecay(tau, 1 / 20),
        )  # fmt: skip

    def at(self, k: Any) -> Sequences:
        """The five values at iteration `k`."""
        return Sequences(self.zeta(k), self.alpha(k), self.beta(k), self.w(k), self.tau(k))

    def check(self, where: str = "TimeScales") -> None:
        """Raise `InvalidConfig` unless every sequence is positive and non-increasing."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).check(f"{where}.{field.name}")

    def broken_constraints(self, discount: float | None = None, smoothness: float | None = None) -> list[str]:
        r"""Sentences, one for each of the paper's conditions that these sequences break.

        The order asked is $\zeta_k \ll \alpha_k \le \beta_k \ll w_k \ll \tau_k$. For powers of $k$ that means: the
        exponents fall in that order, and where two are equal the constants must separate them. `smoothness` is
        $L_V$, the Lipschitz constant of the value's gradient: the paper also asks $\alpha_0/\tau_0 \le 1/L_V$.

        The order between beta, w and tau is one of exponents: their constants carry different units.
        """
        z, a, b, w, t = (getattr(self, n) for n in ("zeta", "alpha", "beta", "w", "tau"))
        broken = []
        if z.power < a.power or (z.power == a.power and z.initial >= a.initial):
            broken.append(f"zeta must fall faster than alpha (or start lower at the same power): {_pair(z, a)}")
        if a.power < b.power or (a.power == b.power and a.initial > b.initial):
            broken.append(f"alpha must stay at or below beta: {_pair(a, b)}")
        if b.power <= w.power:
            broken.append(f"beta must fall faster than w: {_pair(b, w)}")
        if w.power < t.power or (w.power == t.power and w.power > 0):
            broken.append(f"w must fall faster than tau: {_pair(w, t)}")
        if discount is not None and a.power == b.power and a.initial > (1 - discount) * b.initial:
            broken.append(
                f"alpha/beta must be of the order of 1 - gamma = {1 - discount:.3g} when their powers agree: "
                f"got {a.initial / b.initial:.3g}"
            )
        if smoothness is not None and a.initial / t.initial > 1 / smoothness:
            broken.append(
                f"alpha_0/tau_0 must be at most 1/L_V = {1 / smoothness:.3g}: got {a.initial / t.initial:.3g}"
            )
        return broken


def _pair(one: PowerDecay, two: PowerDecay) -> str:
    return f"got {one.initial:g}/(k+1)^{one.power:.3g} against {two.initial:g}/(k+1)^{two.power:.3g}"
