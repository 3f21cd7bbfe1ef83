"""Who somebody is, from one picture or many: the encoder's answers weighed by how far they are known to stray.

An encoder that is asked for the shape s of a head answers m, which is drawn to the mean where it does not know. On
drawn people whose truth is known, two pictures each, one measures how its answers vary from person to person (B), how
from picture to picture of one person (W), and how they go along with the truth (C = cov(s, m)). All being normal, the
best guess of the truth from the mean answer of n pictures is the regression

    E[s] = C (B + W / n)^-1 m,     cov[s] = S - C (B + W / n)^-1 C^T

and whether two sets of pictures show one person is asked by the two-covariance model (Brümmer and de Villiers, "The
speaker partitioning problem", 2010, section 3): the ratio of the likelihoods of both means with one person's covariance
B between them, and with none.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from recon4d.files import InputError
from torch import Tensor

AXES = 40  # measurements that a picture is worth at most
# A picture is explained less well than it says: its noise is so many times as large, and never less than a share of
# what varies among people. Both were chosen on drawn people who are in no other measurement.
TEMPER, FLOOR = 1.5, 0.1
UNVARIED = 1e-6  # variance of a number that is the same for all people
SHRINK = 0.95  # of covariances towards their diagonals: some hundred people say little of a hundred numbers together


@dataclass(frozen=True, eq=False)
class Measured:
    """How an encoder strays, measured on drawn people.

    Attributes:
        sigma: (layout.size,) standard deviations of the errors of one picture's vector.
        columns: (K,) which of the identity numbers (`vector.identity_of`) differ among people; the others are zero.
        mean: (K,) of the answers. between, within: (K, K) covariances of answers: B and W above.
        cross: (K, K) covariance of truth and answers, C. prior: (K, K) covariance of the truth, S.
    """

    sigma: np.ndarray
    columns: np.ndarray
    mean: np.ndarray
    between: np.ndarray
    within: np.ndarray
    cross: np.ndarray
    prior: np.ndarray

    def state(self) -> dict[str, Tensor]:
        """What a file holds."""
        return {field.name: torch.from_numpy(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Person:
    """What n pictures say of one person: the likeliest identity (I,), all its numbers, and its covariance (I, I)."""

    identity: np.ndarray
    covariance: np.ndarray


def measure(truth: np.ndarray, answers: np.ndarray, errors: np.ndarray) -> Measured:
    """What P people with two pictures each say of an encoder.

    Args:
        truth: (P, I). answers: (P, 2, I), all identity numbers. errors: (2 P, layout.size) of the whole vectors.
    """
    columns = np.flatnonzero(truth.std(0) > 1e-6)
    truth, answers = truth[:, columns], answers[..., columns]
    mean = answers.mean((0, 1))
    about, true = answers - mean, truth - truth.mean(0)
    each = about.reshape(-1, about.shape[-1])
    half = (about[:, 0] - about[:, 1]) / 2**0.5
    total, within = each.T @ each / len(each), half.T @ half / len(half)
    cross = np.concatenate([true, true]).T @ about.swapaxes(0, 1).reshape(each.shape) / len(each)
    return Measured(
        sigma=np.sqrt((errors**2).mean(0)),
        columns=columns,
        mean=mean,
        between=positive(shrunk(total - within)),
        within=positive(shrunk(within)),
        cross=shrunk(cross),
        prior=positive(shrunk(true.T @ true / len(true))),
    )


def shrunk(covariance: np.ndarray, share: float = SHRINK) -> np.ndarray:
    """Most of what is off the diagonal is chance: less of it."""
    return (1 - share) * covariance + share * np.diag(np.diag(covariance))


def positive(covariance: np.ndarray, least: float = 1e-6) -> np.ndarray:
    """The nearest covariance without directions of no or negative variance."""
    values, axes = np.linalg.eigh((covariance + covariance.T) / 2)
    answer: np.ndarray = (axes * np.maximum(values, least)) @ axes.T
    return answer


def combine(measured: Measured, answers: np.ndarray) -> Person:
    """The person that all of the pictures with answers (n, I) show."""
    columns = measured.columns
    spread = measured.between + measured.within / len(answers)
    gain = np.linalg.solve(spread, measured.cross.T).T
    identity, covariance = np.zeros(answers.shape[1]), np.zeros((answers.shape[1],) * 2)
    identity[columns] = gain @ (answers[:, columns].mean(0) - measured.mean)
    covariance[np.ix_(columns, columns)] = positive(measured.prior - gain @ measured.cross.T)
    return Person(identity, covariance)


def likeness(measured: Measured, some: np.ndarray, others: np.ndarray) -> float:
    """The logarithm of how much likelier answers (n, I) and (m, I) are of one person than of two; 0 says nothing."""
    return scorer(measured, len(some), len(others))(some, others)


def scorer(measured: Measured, n: int, m: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """`likeness` of many sets of n and of m answers."""
    B, W = measured.between, measured.within
    K = len(B)
    apart = np.zeros((2 * K, 2 * K))
    apart[:K, :K], apart[K:, K:] = B + W / n, B + W / m
    one = apart.copy()
    one[:K, K:] = one[K:, :K] = B
    difference = np.linalg.inv(apart) - np.linalg.inv(one)
    constant = np.linalg.slogdet(apart)[1] - np.linalg.slogdet(one)[1]

    def score(some: np.ndarray, others: np.ndarray) -> float:
        means = [answers[:, measured.columns].mean(0) - measured.mean for answers in (some, others)]
        both = np.concatenate(means)
        return float(both @ difference @ both + constant) / 2

    return score


def prior_of(measured: Measured, size: int) -> np.ndarray:
    """(size,) how much each identity number varies among people; zero for those that do not."""
    answer = np.zeros(size)
    answer[measured.columns] = np.diag(measured.prior)
    return answer


def told(
    prior: np.ndarray, identity: np.ndarray, covariance: np.ndarray, doubt: float = 1.0, axes: int = AXES
) -> np.ndarray:
    """What a picture tells of an identity beside what is known of all people: (axes, I + 1) independent measurements.

    The first I numbers of a row times the identity are the last one, with a noise of one. What tells nothing is zero.

    Args:
        prior: (I,) variances among people, zero for numbers that do not differ.
        identity, covariance: (I,), (I, I) of what is known with the picture (`combine`, `people.explained`).
        doubt: how many times surer the covariance is than it should be.
    """
    used = np.flatnonzero(prior > UNVARIED)
    root = np.sqrt(prior[used])
    known = covariance[np.ix_(used, used)] / np.outer(root, root)
    values, directions = np.linalg.eigh(np.linalg.inv(known) - np.eye(len(used)))
    order = np.argsort(-values)[:axes]
    values, directions = np.maximum(values[order], 1e-6), directions[:, order]
    # The mean is drawn to that of all people: 1 + 1 / value undoes this, as the directions are the covariance's own.
    measured = directions.T @ (identity[used] / root) * (1 + 1 / values)
    spread = np.sqrt(TEMPER * doubt / values + FLOOR)
    answer = np.zeros((axes, len(prior) + 1))
    answer[: len(values), used] = (directions / root[:, None]).T / spread[:, None]
    answer[: len(values), -1] = measured / spread
    return answer


def known(prior: np.ndarray, rows: np.ndarray) -> Person:
    """The likeliest identity and its covariance by what pictures tell (n, I + 1), see `told`, and variances `prior`."""
    axes, values = rows[:, :-1], rows[:, -1]
    spread = prior[:, None] * axes.T
    gain = np.linalg.solve(axes @ spread + np.eye(len(rows)), spread.T).T
    return Person(gain @ values, np.diag(prior) - gain @ spread.T)


def told_likeness(prior: np.ndarray, some: np.ndarray, others: np.ndarray) -> float:
    """`likeness` of what two pictures tell (n, I + 1) and (m, I + 1): see `told`."""
    both = np.concatenate([some, others])
    axes, values = both[:, :-1], both[:, -1]
    together = (axes * prior) @ axes.T + np.eye(len(both))

    def density(rows: slice) -> float:
        L = np.linalg.cholesky(together[rows, rows])
        return -float(np.log(np.diag(L)).sum() + np.square(np.linalg.solve(L, values[rows])).sum() / 2)

    n = len(some)
    return density(slice(None)) - density(slice(n)) - density(slice(n, None))


def of_state(state: Any, size: int, length: int, where: str) -> Measured:
    """From what a file holds, of vectors of `size` and identities of `length`. Raises InputError where it fits not."""
    columns = state.get("columns") if isinstance(state, dict) else None
    K = len(columns) if isinstance(columns, Tensor) and columns.ndim == 1 else -1
    shapes: dict[str, tuple[int, ...]] = {"sigma": (size,), "columns": (K,), "mean": (K,)}
    shapes |= dict.fromkeys(("between", "within", "cross", "prior"), (K, K))
    arrays = {}
    for name, shape in shapes.items():
        value = state.get(name) if isinstance(state, dict) else None
        array = value.double().numpy() if isinstance(value, Tensor) else None
        if array is None or array.shape != shape or not np.isfinite(array).all():
            raise InputError(f"{where}: what it says of its own errors ({name}) does not fit; train it again")
        arrays[name] = array
    if (arrays["sigma"] < 0).any():
        raise InputError(f"{where}: it says that its errors are negative; train it again")
    if not K or (arrays["columns"] < 0).any() or (arrays["columns"] >= length).any():
        raise InputError(f"{where}: it measured identities of another layout; train it again")
    arrays["columns"] = arrays["columns"].astype(int)
    for name in ("between", "within", "prior"):
        arrays[name] = positive(arrays[name])
    return Measured(**arrays)
