"""Drawing completions: `Decoder` moves a batch of sequences token by token, `Sampler` draws groups of rollouts on top of it."""
