"""Scoring overlaps the drawing of the rest and what comes after it, when the reward can be judged elsewhere."""

from __future__ import annotations

from tacit.rl import trainer


class Elsewhere:
    """A reward with `begin`, which writes down what happens when."""

    def __init__(self, reward, log: list[str]):
        self.reward, self.log = reward, log

    def begin(self, prompts, completions):
        self.log.append("begin")

        def wait():
            self.log.append("wait")
            return self.reward(prompts, completions)

        return wait

    def __call__(self, prompts, completions):
        raise AssertionError("a reward that can begin is not called")


def test_scoring_begins_after_each_piece_of_a_draw_and_is_waited_for_after_annotation(lab, monkeypatch):
    monkeypatch.setattr(trainer, "PIECES", 2)
    log: list[str] = []
    agents = [lab.agent(algorithm={"old_logprobs": "recompute"}, index=i) for i in range(2)]

    def noting(stage, call):
        def noted(*args):
            log.append(stage)
            return call(*args)

        return noted

    for agent in agents:
        for stage in ("draw", "annotate"):
            monkeypatch.setattr(agent, stage, noting(stage, getattr(agent, stage)))
    plain = lab.trainer([lab.agent(algorithm={"old_logprobs": "recompute"}, index=i) for i in range(2)]).step()
    step = lab.trainer(agents, reward=Elsewhere(lab.first_letter, log)).step()
    assert log == ["draw", "begin"] * 4 + ["annotate"] * 2 + ["wait"] * 4
    assert step.drawn.token.tolist() == plain.drawn.token.tolist() and step.drawn.group.tolist() == plain.drawn.group.tolist()
    assert step.drawn.reward.tolist() == plain.drawn.reward.tolist() and step.drawn.reward.sum() > 0
