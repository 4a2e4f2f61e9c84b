"""Reinforcement learning: pure formulas (advantages, losses, aggregation, kl, correction) and the trainer that calls them."""
