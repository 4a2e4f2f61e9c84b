"""Which decoder runs a policy: the native one where it can, else the generic one, with a sentence that says why."""

from __future__ import annotations

import logging
import os

from tacit.core.policy import Policy
from tacit.core.processors import usable_processors
from tacit.generation.decoder import Decoder
from tacit.generation.native_decoder import NativeDecoder, unsuitable
from tacit.generation.native_library import Unavailable
from tacit.generation.transformers_decoder import TransformersDecoder

logger = logging.getLogger("tacit")


def decoder_for(policy: Policy, threads: int | None = None) -> Decoder:
    """The fastest decoder that runs this policy; which one, it tells the log."""
    decoder, sentence = choose(policy, threads)
    logger.info(sentence)
    return decoder


def choose(policy: Policy, threads: int | None = None) -> tuple[Decoder, str]:
    """The decoder, and one sentence about the choice. `threads` are of the native one; default: all that this process may use."""
    name, threads = type(policy.base_model).__name__, threads or usable_threads()
    if reason := unsuitable(policy):
        return TransformersDecoder(policy), f"{name} decodes by its own forward pass: {reason}"
    try:
        decoder = NativeDecoder(policy, threads)
    except Unavailable as error:
        return TransformersDecoder(policy), f"{name} decodes by its own forward pass, which is slower: {error}"
    return decoder, f"{name} decodes natively in {decoder.precision}, {threads} {'thread' if threads == 1 else 'threads'}"


def usable_threads() -> int:
    """$OMP_NUM_THREADS, else this process's share of the processors that it may run on.

    Rows are drawn by threads that share nothing but weights: two are as good as two processes of one thread each (benchmarks/decode.py).
    """
    if asked := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        return max(1, int(asked)) if asked.isdigit() else 1
    return max(1, usable_processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
