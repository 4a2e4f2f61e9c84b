"""The work that both sides of `vs_trl.py` do: cases, prompts, reward, and what makes completions end. Imports neither side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SEED = 0
LETTERS = "abcdefghijklmnop"
SMALL = {"hidden": 128, "layers": 5, "heads": 4, "mlp": 384, "context": 512}  # 1.1M parameters
LARGE = {"hidden": 384, "layers": 6, "heads": 6, "mlp": 1024, "context": 512}  # 10.6M
LEARNING_RATE, BETAS, CLIP, MAX_GRAD_NORM = 1e-6, (0.9, 0.95), (0.2, 0.28), 1.0
PAD_ID, EOS_ID = 0, 1
NEVER = -5.0


@dataclass(frozen=True)
class Case:
    """`end` is the weight of EOS in the constant dimension: see `lean`. `bar` is the ratio that issue 6 asks for."""

    model: dict[str, int]
    prompts: int
    max_new_tokens: int
    prompt_length: tuple[int, int]
    end: float
    rounds: int  # that count
    bar: float | None = None
    group_size: int = 8

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def fixed(self) -> bool:
        return self.end == NEVER

    def prompt(self, ordinal: int) -> str:
        """Random letters."""
        generator = torch.Generator().manual_seed(SEED * 2**32 + ordinal)
        length = int(torch.randint(self.prompt_length[0], self.prompt_length[1] + 1, (1,), generator=generator))
        return "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (length,), generator=generator))


CASES = {
    "1m-fixed": Case(SMALL, 4, 64, (16, 16), NEVER, rounds=25, bar=2.2),
    "1m-variable": Case(SMALL, 16, 128, (8, 24), 0.91, rounds=12, bar=3.2),
    "10m-fixed": Case(LARGE, 4, 64, (16, 16), NEVER, rounds=10, bar=1.6),
    "10m-variable": Case(LARGE, 8, 128, (8, 24), 0.948, rounds=6, bar=2.4),
    "long-prompts": Case(SMALL, 4, 64, (256, 256), NEVER, rounds=10),
}


def lean(model: Any, end: float) -> None:
    """Weights near 0, so that letters are about equally likely, and a first dimension that no layer writes to: there, `end` sets how likely EOS is.

    Padding is never drawn.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.02, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[0] = 0
        constant = model.get_input_embeddings().weight[:, 0]
        constant.fill_(1.0)
        constant[EOS_ID], constant[PAD_ID] = end, NEVER


def vowels(completion: str) -> float:
    """A reward that costs nothing and differs within a group."""
    return sum(completion.count(letter) for letter in "aeio") / (1 + len(completion))
