"""How a token is drawn: one uniform number per token, a pure function of where the token stands, and the inverse of the CDF.

    row key = mix(mix(mix(mix(mix(seed + g) + agent + g) + step + g) + group + g) + sample + g)
    uniform = (mix(row key + (position + 1) g) >> 11) / 2^53

with `mix` the finaliser of SplitMix64 and g its increment, all modulo 2^64: a row is a SplitMix64 stream, read at any place. What is drawn depends on
no other row, so neither on batching nor on order nor on the number of workers, and any language gives the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The 64-bit finaliser, a bijection. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(seed: int, step: int, groups: ArrayLike, samples: ArrayLike, *, agent: int = 0) -> NDArray[np.uint64]:
    """(B,) keys of the rows (groups[b], samples[b]). Equal models that sample as different agents draw apart."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, agent, step, groups, samples):
        key = splitmix64(key + np.atleast_1d(np.asarray(part)).astype(np.uint64) + GOLDEN)
    return key


def uniforms(keys: NDArray[np.uint64], positions: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2^-53, at these token positions of these rows; the two broadcast."""
    counter = np.atleast_1d(np.asarray(positions)).astype(np.uint64) + np.uint64(1)
    return (splitmix64(keys + counter * GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_from(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A token per row: logits (R, V) and uniforms (R,) float64 in [0, 1] to token (R,) int64, logp (R,) float64 and, when asked, entropy (R,).

    The token is the first, in the order of the vocabulary, whose cumulative probability exceeds the uniform; one of probability zero is never drawn.
    `logp` is log-softmax(logits / temperature) at the token, also under `top_p` < 1, which keeps the smallest set of likeliest tokens that holds at
    least that much probability (Holtzman et al. 2020) and is for evaluation. A temperature of 0 takes the likeliest token, with its log-prob at
    temperature 1. The entropy is of the distribution that `logp` comes from, in nats. A row whose logits hold NaN, or nothing finite, gives an
    arbitrary token with logp NaN.
    """
    if logits.device.type == "mps":  # knows no float64
        logits, uniforms = logits.cpu(), uniforms.cpu()
    scaled = logits.double() / (temperature if temperature > 0 else 1.0)
    scaled = scaled - scaled.amax(-1, keepdim=True)
    weight = scaled.exp()
    total = weight.sum(-1)
    if temperature <= 0:
        token = scaled.argmax(-1)
    else:
        token = _inverse_cdf(weight if top_p >= 1 else _nucleus(weight, top_p), uniforms)
    logp = scaled.gather(-1, token[:, None])[:, 0] - total.log()
    spread = total.log() - (weight * scaled.clamp(min=-1e300)).sum(-1) / total if entropy else None  # a weight of 0 has a logit of -inf
    return token, logp, spread


def _inverse_cdf(weight: Tensor, uniforms: Tensor) -> Tensor:
    """(R,) first index whose cumulative weight exceeds uniforms times the whole; weight (R, V) need not sum to one."""
    reach = weight.cumsum(-1).where(weight > 0, 0.0)  # 0 where nothing may be drawn: a parallel cumsum need not be monotone to the last bit
    end = reach.amax(-1)
    point = torch.minimum(uniforms * end, end.nextafter(torch.zeros_like(end)))  # no entry exceeds `end`, so a uniform of 1 would find none
    return (reach > point[:, None]).to(torch.uint8).argmax(-1)


def _nucleus(weight: Tensor, top_p: float) -> Tensor:
    """Weights (R, V) with all but the smallest set of likeliest tokens that holds at least `top_p` of the whole set to 0."""
    ordered, index = weight.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    dropped = before >= top_p * ordered.sum(-1, keepdim=True)
    return weight.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), 0.0)
