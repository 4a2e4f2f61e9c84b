"""CBS: a scheduler that learns which rollouts, fresh or old, are worth training on, from what each step gained.

Source: "Contextual Rollout Bandits for RLVR", arXiv 2602.08499. No code and no full text is public; formulas in `tacit.rl.scheduler`. What is ours:

    label         the gain of a step is the target of every rollout in it, or of their mean score (`label`)
    warm-up       random choices of the same size, then ε of the slots at random, ε falling
    labels        standardised with exponential moments; the price of entropy from the warm-up
    replay        ratios against the log-probs of the policy that drew the rollout, with the optimiser's own clip; stored advantages
    features      the last two of ten, and all scaling
    V             mean over all fresh rollouts, before any filter: a filter that hides agreeing groups would pull it to the middle
    less noise    off unless asked for: probes with common random numbers, past pass rates as control variate, a window as baseline
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tacit.core.rollouts import Prompt, Role, RolloutBatch, Source
from tacit.core.runtime import Runtime
from tacit.core.statistics import spearman
from tacit.rl.aggregation import sum_within
from tacit.rl.gain import Gain, PastRates, Round, round_of
from tacit.rl.probes import Probes
from tacit.rl.replay import identity
from tacit.rl.scheduler import (
    FEATURES,
    Context,
    Decision,
    Normaliser,
    Scheduler,
    clip_ratio,
    decision_state,
    explored,
    features,
    fit_seconds,
    row_mean,
)
from tacit.rl.selectors import TRUTH, Floats, Ints, Mode, Selector, check_numbers

if TYPE_CHECKING:
    from tacit.rl.agent import Agent
    from tacit.rl.step import Step
    from tacit.rl.trainer import Trainer

PASS_RATE = "cbs/pass_rate"  # row column
STANDARD = ("entropy", "logp")  # features that are z-scores


class CBS(Selector):
    """Verify, credit, select, observe. Put it after components that change rewards or advantages. Beside the keys of `Selector`:

    label        sample: every chosen rollout has the gain as its target (A); set: their mean score has (B)
    warmup       labels before the scheduler decides
    explore      ε, at first and in the end, and the rounds between
    w_e, e_min   price of growing entropy, and where it begins; null: from the warm-up; `w_e: 0`: gains alone
    reward       raw: the verifier's own word; shaped: what shaping, or noise, has made of it
    without      features held at 0
    probes       prompts whose completions, with the same random numbers at every step, measure V instead of the training batch; 0: none
    control      take the difficulty of the prompts out of V: past pass rates by prompt (of a finite task) or by difficulty bin
    window       V is compared with the mean of so many before it
    confounded   keep or drop the label of a step in which another component's update ran as well
    ratios       stored: against the policy that drew the rollout; fresh: recomputed at the beginning of the step, so that they are 1
    labels       measured; or, as a control, shuffled over rounds
    width, dropout, pool, epochs   of the network, the rounds it is fitted on, and passes a round
    """

    def __init__(
        self,
        mode: Mode = "intra",
        share: float = 0.5,
        rounds: int = 4,
        count: float = 1.0,
        stale: int | None = None,
        label: Literal["sample", "set"] = "sample",
        warmup: int = 8,
        explore: tuple[float, float, int] = (0.1, 0.02, 100),
        w_e: float | None = None,
        e_min: float | None = None,
        reward: Literal["raw", "shaped"] = "raw",
        without: tuple[str, ...] = (),
        probes: int = 0,
        control: Literal["none", "prompt", "difficulty"] = "none",
        window: int = 1,
        confounded: Literal["keep", "drop"] = "keep",
        ratios: Literal["stored", "fresh"] = "stored",
        labels: Literal["measured", "shuffled"] = "measured",
        standardise: bool = True,
        width: int = 64,
        dropout: float = 0.1,
        pool: int = 64,
        epochs: int = 2,
    ):
        super().__init__(mode=mode, share=share, rounds=rounds, count=count, stale=stale)
        check("label", label, ("sample", "set"))
        check("reward", reward, ("raw", "shaped"))
        check("control", control, ("none", "prompt", "difficulty"))
        check("confounded", confounded, ("keep", "drop"))
        check("ratios", ratios, ("stored", "fresh"))
        check("labels", labels, ("measured", "shuffled"))
        if not isinstance(without, list | tuple):
            raise ValueError(f"without of CBS must be a list of features, not {without!r}")
        for name in without:
            check("without", name, FEATURES)
        check_numbers("CBS", warmup=(warmup, int, 1), window=(window, int, 1), probes=(probes, int, 0), width=(width, int, 0), pool=(pool, int, 1))
        check_numbers("CBS", epochs=(epochs, int, 1), dropout=(dropout, float, 0))
        check_numbers("CBS", **{name: (value, float, 0) for name, value in (("w_e", w_e), ("e_min", e_min)) if value is not None})
        if dropout >= 1 or not isinstance(standardise, bool):
            raise ValueError(f"CBS needs dropout below 1 and standardise true or false, not {dropout} and {standardise!r}")
        numbers = isinstance(explore, list | tuple) and len(explore) == 3 and all(isinstance(x, int | float) for x in explore)
        if not numbers or explore[2] < 1 or not 0 <= explore[1] <= explore[0] <= 1:
            raise ValueError(f"explore of CBS must be [first, last, rounds] with 1 >= first >= last >= 0 and rounds >= 1, not {explore!r}")
        self.reward: Literal["raw", "shaped"] = reward
        self.warmup, self.exploring, self.without, self.confounded, self.ratios = warmup, explore, frozenset(without), confounded, ratios
        network = {"width": width, "dropout": dropout, "pool": pool, "epochs": epochs}
        self.options: dict[str, Any] = {"kind": label, "warmup": warmup, "w_e": w_e, "e_min": e_min, "standardise": standardise, **network}
        self.options["shuffled"] = labels == "shuffled"
        self.needs = frozenset({"entropy"})
        self.scheduler = Scheduler(**self.options)
        self.probes = Probes(probes, every=1)
        self.gain = Gain(window, PastRates(control))
        self.seen = {name: Normaliser() for name in STANDARD}
        self.pending: Decision | None = None  # chosen last, and not judged yet
        self.runtime = Runtime()
        # of the step under way
        self.now: Round | None = None
        self.scored: tuple[dict[int, int], Tensor] = ({}, torch.empty(0))  # row of each candidate, and their features
        self.chosen_now: Tensor | None = None
        self.seconds = 0.0  # what the scheduler costs

    def prepare(self, trainer: Trainer, agent: Agent) -> None:
        """Has the sampler fill the entropy: it knows the distribution that it draws from, and no forward pass is needed."""
        self.scheduler = Scheduler(**self.options, seed=trainer.seed)
        self.probes.prepare(trainer, agent.components.index(self))
        self.runtime = trainer.runtime
        agent.sampler.entropy = True

    def note(self, agent: Agent) -> str:
        drawn = agent.sampling.prompts * agent.sampling.group_size
        passes = "no forward pass beyond those of the base" if self.mode == "intra" else "one log-prob pass over what the buffer holds beside it"
        probing = f"; {len(self.probes)} probes a step measure what was gained" if len(self.probes) else ""
        taken = self.share if self.mode == "intra" else self.count if self.mode == "global" else self.count * self.share
        fit = f"; the scheduler's fit takes about {1e3 * fit_seconds(round(taken * drawn), **self.options):.0f} ms of a step here"
        return f"CBS: about {taken * drawn:.0f} of {drawn} fresh rollouts' worth trained on a step, {passes}{probing}{fit}"

    # --- the stages ---

    def sample(self, step: Step, agent: Agent, prompts: list[Prompt], groups: list[int], batch: RolloutBatch) -> RolloutBatch:
        return self.probes.draw(step, agent, groups, batch)

    def verify(self, step: Step, agent: Agent) -> None:
        """The label of the last decision, and the scheduler's fit on it."""
        drawn = step.drawn.select((step.drawn.agent == agent.index) & (step.drawn.role == Role.TRAIN))
        if self.void or not drawn.scored.any():
            self.pending = None
            return
        entropy = float(self.entropies(drawn).mean())
        self.now = round_of(drawn, self.values(drawn), entropy, self.probes.scores(step, agent), self.gain.rates)
        told: dict[str, float] = {"cbs/value": self.now.value, "cbs/entropy": entropy}
        compared = self.gain.compare(self.now)
        if self.pending is not None and compared is not None:
            before, after, noise = compared
            self.scheduler.add(replace(self.pending, v=before, v_next=after, e_next=entropy))
            told |= {"cbs/gain": after - before, "cbs/label": float(self.scheduler.rewards()[-1]), "cbs/label_noise": noise}
            began = time.perf_counter()
            told["cbs/loss"] = self.scheduler.fit()
            self.seconds += time.perf_counter() - began
        self.pending = None
        self.gain.move_on(self.now)
        for name in ("w_e", "e_min"):
            if (value := getattr(self.scheduler, name)) is not None:
                told[f"cbs/{name}"] = value
        step.tell(agent, {name: value for name, value in told.items() if np.isfinite(value)})

    def credit(self, step: Step, agent: Agent, pool: RolloutBatch) -> RolloutBatch:
        """The pass rate of each rollout's whole group: what is trained on may be less."""
        counted = pool.scored & (pool.agent == agent.index) & (pool.role == Role.TRAIN)
        values = torch.where(counted, self.values(pool), 0)
        return pool.with_columns(**{PASS_RATE: sum_within(values, pool.group) / sum_within(counted.double(), pool.group).clamp(min=1)})

    def select(self, step: Step, agent: Agent, batch: RolloutBatch) -> RolloutBatch:
        began = time.perf_counter()
        chosen = super().select(step, agent, batch)
        self.seconds += time.perf_counter() - began
        if self.void or not len(chosen):
            return chosen
        rows, found = self.scored
        self.chosen_now = found[[rows[name] for name in identity(chosen).tolist()]].float()
        step.tell(agent, {"cbs/epsilon": self.explore if self.decides else 1.0})
        if self.ratios == "fresh" and self.mode != "intra":
            options = {"temperature": agent.sampling.temperature, "micro_batch_tokens": agent.algorithm.micro_batch_tokens}
            chosen = chosen.with_columns(old_logp=agent.mirror.token_stats(chosen.prompt_tokens, chosen.completions, **options).logp)
        return chosen

    def observe(self, step: Step, agent: Agent) -> None:
        """What was chosen waits for its label; entropy and log-prob of this round join what later rounds are compared with."""
        mine = [update for index, update in step.updates if index == agent.index]
        mixed = any(update.tag != "policy" for update in mine)
        step.tell(agent, {"cbs/confounded": float(mixed), "cbs/seconds": self.seconds})
        if self.now is not None and self.chosen_now is not None and mine and not self.void and not (mixed and self.confounded == "drop"):
            self.pending = Decision(self.chosen_now, self.now.value, self.now.entropy)
        drawn = step.drawn.select((step.drawn.agent == agent.index) & (step.drawn.role == Role.TRAIN))
        self.seen["entropy"].add(self.entropies(drawn))
        self.seen["logp"].add(self.of_tokens(drawn, drawn.behaviour_logp))
        self.now, self.chosen_now, self.scored, self.seconds = None, None, ({}, torch.empty(0)), 0.0
        super().observe(step, agent)

    # --- choosing ---

    @property
    def decides(self) -> bool:
        """Whether the warm-up is over."""
        return self.scheduler.labelled >= self.warmup

    @property
    def explore(self) -> float:
        return explored(self.scheduler.labelled - self.warmup, *self.exploring) if self.decides else 0.0

    def scores(self, step: Step, agent: Agent, candidates: RolloutBatch, groups: Ints, counts: Ints) -> Floats:
        context = self.context(step, agent, candidates)
        z = {name: self.seen[name].moments for name in STANDARD}
        found = features(context, z, limit=agent.sampling.max_new_tokens, rounds=self.buffer.rounds)
        found[:, [name in self.without for name in FEATURES]] = 0
        self.scored = ({name: row for row, name in enumerate(identity(candidates).tolist())}, found)
        scores = self.scheduler.scores(found) if self.decides else np.zeros(len(candidates))
        scores = self.runtime.broadcast_object(scores)  # all processes choose alike, however theirs rounds
        if TRUTH in candidates:
            self.compare(step, agent, scores, found.numpy(), candidates)
        return scores

    def compare(self, step: Step, agent: Agent, scores: Floats, found: Floats, candidates: RolloutBatch) -> None:
        """How well scores and features rank the fresh rollouts by their true value, and what a linear map of all ten explains of it."""
        fresh = (candidates.source != Source.REPLAYED).numpy() & candidates.rows[TRUTH].isfinite().numpy()
        if not fresh.any():
            return
        truth = candidates.rows[TRUTH].numpy()[fresh]
        told = {f"cbs/spearman_{name}": spearman(found[fresh, i], truth) for i, name in enumerate(FEATURES)}
        told |= {"cbs/spearman": spearman(scores[fresh], truth), "cbs/explained": explained(found[fresh], truth)}
        step.tell(agent, {name: value for name, value in told.items() if np.isfinite(value)})

    def context(self, step: Step, agent: Agent, batch: RolloutBatch) -> Context:
        """What is known of the candidates now. Fresh rollouts were drawn by this very policy; replayed ones are looked at again."""
        old = batch.source == Source.REPLAYED
        entropy, logp, clipped = self.entropies(batch), self.of_tokens(batch, batch.behaviour_logp), torch.zeros(len(batch), dtype=torch.float64)
        if old.any():
            entropy[old], logp[old], clipped[old] = self.seen_now(agent, batch.select(old))
        age = step.index - self.buffer.born(batch) if self.mode != "intra" and old.any() else torch.zeros(len(batch))
        return Context(
            reward=self.values(batch),
            advantage=batch.advantage,
            length=batch.lengths.double(),
            truncated=(~batch.finished).double(),
            entropy=entropy,
            clip_ratio=clipped,
            age=age.double(),
            usage=batch.usage.double(),
            pass_rate=batch.rows[PASS_RATE],
            logp=logp,
        )

    def seen_now(self, agent: Agent, batch: RolloutBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Mean entropy, mean log-prob and clip ratio of each of these under the policy of now: one pass, shared out over processes."""
        runtime, config = self.runtime, agent.algorithm
        mine = batch.select(torch.arange(len(batch))[runtime.rank :: runtime.world_size])
        options = {"temperature": agent.sampling.temperature, "micro_batch_tokens": config.micro_batch_tokens}
        stats = agent.mirror.token_stats(mine.prompt_tokens, mine.completions, entropy=True, **options)
        assert stats.entropy is not None
        clipped = clip_ratio(stats.logp, mine.behaviour_logp, mine.row_of_token, mine.action, len(mine), config.clip_low, config.clip_high)
        share = torch.stack([self.of_tokens(mine, stats.entropy), self.of_tokens(mine, stats.logp), clipped])
        found = torch.empty(3, len(batch), dtype=torch.float64)
        for rank, part in enumerate(runtime.gather_objects(share)):
            found[:, rank :: runtime.world_size] = part
        return found[0], found[1], found[2]

    def entropies(self, batch: RolloutBatch) -> Tensor:
        return self.of_tokens(batch, batch.entropy)

    def of_tokens(self, batch: RolloutBatch, column: Tensor) -> Tensor:
        """(B,) mean over each row's own tokens: those that the sampler did not choose are left out."""
        return row_mean(column, batch.row_of_token, ~batch.forced & column.isfinite(), len(batch))

    def values(self, batch: RolloutBatch) -> Tensor:
        """(B,) v(x); 0 where there is no verdict."""
        return (batch.rows["reward/raw"] if self.reward == "raw" else batch.reward).nan_to_num()

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "scheduler": self.scheduler.state_dict(),
            "gain": self.gain.state_dict(),
            "seen": {name: seen.state_dict() for name, seen in self.seen.items()},
            "pending": None if self.pending is None else decision_state(self.pending),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scheduler.load_state_dict(state["scheduler"])
        self.gain.load_state_dict(state["gain"])
        for name, seen in self.seen.items():
            seen.load_state_dict(state["seen"][name])
        self.pending = None if state["pending"] is None else Decision(**state["pending"])

    def on_rollback(self) -> None:
        """What the last decision did is undone, so it has no label; what earlier ones taught stays."""
        super().on_rollback()
        self.pending, self.now, self.chosen_now = None, None, None
        self.gain.restart()


def explained(found: Floats, truth: Floats) -> float:
    """The share of the variance of `truth` (N,) that the best linear map of features (N, 10) explains, less what chance would; NaN for few rows."""
    columns = found[:, found.std(0) > 0]
    freedom = len(truth) - columns.shape[1] - 1
    if freedom < 1 or truth.std() == 0:
        return float("nan")
    x = np.column_stack([np.ones(len(truth)), columns])
    left = truth - x @ np.linalg.lstsq(x, truth, rcond=None)[0]
    return float(1 - (left @ left / freedom) / truth.var(ddof=1))


def check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} of CBS must be one of {', '.join(known)}, not {value!r}")
