"""Formulas of docstrings for a terminal: Unicode in place of LaTeX."""

from __future__ import annotations

import re

LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega"
)
GREEK = dict(zip(LETTERS.split(), "αβγδεζηθικλμνξπρστφχψωΓΔΘΛΠΣΦΨΩ", strict=True))
SIGNS = {
    "nabla": "∇", "sum": "Σ", "prod": "Π", "in": "∈", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠",
    "ll": "≪", "gg": "≫", "cdot": "·", "times": "×", "infty": "∞", "sim": "~", "approx": "≈", "to": "→", "dots": "...",
    "ldots": "...", "pm": "±", "sqrt": "√", "partial": "∂", "ell": "ℓ", "top": "ᵀ", "quad": " ", "circ": "∘",
    "mid": "|", "vert": "|", "propto": "∝", "star": "*", "langle": "⟨", "rangle": "⟩",
}  # fmt: skip


def unicode(text: str) -> str:
    r"""A docstring's sentence without LaTeX.

    Example:
        >>> unicode(r"Minimise $\Phi(x) = f(x, \pi^*(x))$ at $\tau_0 \ge 0$, with `bonus`.")
        'Minimise Φ(x) = f(x, π*(x)) at τ_0 ≥ 0, with `bonus`.'
        >>> unicode(r"$\frac{1}{2}\|x\|^2$")
        '1/2‖x‖²'
    """
    return re.sub(r"\$\$?(.+?)\$\$?", lambda found: _formula(found[1]), text, flags=re.DOTALL)


def _formula(text: str) -> str:
    text = text.replace(r"\|", "‖").replace(r"\,", " ").replace(r"\;", " ").replace(r"\!", "").replace(r"\\", " ")
    text = re.sub(r"\\(?:text|mathrm|mathbf|mathcal|operatorname|hat|bar|tilde)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]?frac(\d)(\d)", r"\1/\2", text)
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: f"{_term(m[1])}/{_term(m[2])}", text)
    text = re.sub(r"\\(?:left|right|bigl|bigr|big)\b", "", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda m: (GREEK | SIGNS).get(m[1], m[1]), text)
    text = re.sub(r"\^\{?([*ᵀ])\}?", r"\1", text)
    text = re.sub(r"\^\{?([0-9])\}?", lambda m: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[1])], text)
    return re.sub(r"[{}\\]", "", text)


def _term(text: str) -> str:
    return text if re.fullmatch(r"\w+|\\\w+", text) else f"({text})"
