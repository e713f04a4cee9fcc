"""The paper's algorithm on goal placement, written by hand for one problem in Numba: the speed yardstick.

Same updates as `PenaltyActorCritic` (chains, mean of the samples that visit a state), derivatives by hand, no
generality. What a researcher would write who needs speed and has an afternoon.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def _choose(p, u):
    below = 0.0
    for j in range(p.shape[0] - 1):
        below += p[j]
        if u < below:
            return j
    return p.shape[0] - 1


@numba.njit(cache=True)
def _softmax(row, out):
    top = row[0]
    for j in range(1, row.shape[0]):
        top = max(top, row[j])
    total = 0.0
    for j in range(row.shape[0]):
        out[j] = np.exp(row[j] - top)
        total += out[j]
    entropy = 0.0
    for j in range(row.shape[0]):
        out[j] /= total
        if out[j] > 0:
            entropy -= out[j] * np.log(out[j])
    return entropy


@numba.njit(cache=True)
def run(successors, probabilities, position, utility, width, gamma, cost, x, iterations, chains, initial, power, seed):
    """Run the algorithm; `initial` and `power` hold zeta, alpha, beta, w, tau. Returns x and both value tables."""
    np.random.seed(seed)
    S, A, _ = successors.shape
    theta, V = np.zeros((2, S, A)), np.zeros((2, S))
    at = np.random.randint(0, S, (2, chains))
    pi, seen = np.zeros((chains, A)), np.zeros((chains, 2), np.int64)
    delta, visits = np.zeros(chains), np.zeros(S)
    D = np.zeros(2)
    for k in range(iterations):
        zeta, alpha, beta, w, tau = initial / (k + 1.0) ** power
        bound = ((1 + w) + tau * np.log(A)) / (1 - gamma)
        D[0], D[1] = 2 * cost * x[0], 2 * cost * x[1]
        for f in range(2):
            sign = 1.0 if f == 0 else -1.0
            for n in range(chains):
                s = at[f, n]
                entropy = _softmax(theta[f, s], pi[n])
                a = _choose(pi[n], np.random.random())
                s_next = successors[s, a, _choose(probabilities[s, a], np.random.random())]
                d0, d1 = position[s, 0] - x[0], position[s, 1] - x[1]
                r = np.exp(-(d0 * d0 + d1 * d1) / (2 * width * width))
                scale = sign * r / (width * width) / (chains * w * (1 - gamma))
                D[0] += scale * d0
                D[1] += scale * d1
                if f == 1:
                    r += (1 - gamma) * w * utility[s]
                delta[n] = r + tau * entropy + gamma * V[f, s_next] - V[f, s]
                seen[n, 0], seen[n, 1] = s, a
                visits[s] += 1
                u = np.random.random()
                at[f, n] = int(u / (1 - gamma) * S) if u < 1 - gamma else s_next
            for n in range(chains):
                s = seen[n, 0]
                step = delta[n] / visits[s]
                V[f, s] += beta * step
                for j in range(A):
                    theta[f, s, j] += alpha * step * ((1.0 if j == seen[n, 1] else 0.0) - pi[n, j])
            for n in range(chains):
                s = seen[n, 0]
                V[f, s] = min(max(V[f, s], -bound), bound)
                visits[s] = 0
        x[0] = min(max(x[0] - zeta * D[0], 0.0), 1.0)
        x[1] = min(max(x[1] - zeta * D[1], 0.0), 1.0)
    return x, theta, V
