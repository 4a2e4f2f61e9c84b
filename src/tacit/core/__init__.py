"""What every part of tacit stands on: rollouts, policies, checkpoints, the run folder, the runtime."""
