"""Simulated test jets and studies whose truth is known."""

import math

import numpy as np
from scipy import stats

STUDIES = 1000


def binormal(studies, jets, separation, seed=0, weights=False):
    """labels [jets], scores [studies, jets] (independent samples: signal N(separation, 1), background N(0, 1)), weights
    [jets] of mean 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(jets) % 2
    w = rng.uniform(0.5, 1.5, jets) if weights else np.ones(jets)
    return labels, rng.normal(size=(studies, jets)) + separation * labels, w


def true_auc(separation):
    return float(stats.norm.cdf(separation / math.sqrt(2.0)))


def true_rejection(separation, efficiency):
    return float(1.0 / stats.norm.sf(separation + stats.norm.isf(efficiency)))


def within_binomial(hits, trials, expected, sigmas=3.5):
    """Whether a count agrees with its expected share."""
    return abs(hits / trials - expected) <= sigmas * math.sqrt(expected * (1.0 - expected) / trials)


def not_above_binomial(hits, trials, nominal, sigmas=3.0):
    """Whether a rate is at most the nominal one, up to its binomial error."""
    return hits / trials <= nominal + sigmas * math.sqrt(nominal * (1.0 - nominal) / trials)


def noise_factor(configs, seed=0, size=0.005, correlation=0.95, dimensions=40):
    """[configs, dimensions]: a covariance of equal variances size² and a common correlation, with some structure."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=dimensions)
    own = rng.normal(size=(configs, dimensions))
    factor = math.sqrt(correlation) * common / np.linalg.norm(common)
    factor = factor + math.sqrt(1.0 - correlation) * own / np.linalg.norm(own, axis=1, keepdims=True)
    return size * factor / np.linalg.norm(factor, axis=1, keepdims=True)
