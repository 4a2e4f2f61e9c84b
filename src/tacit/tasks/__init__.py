"""Where prompts come from: procedural tasks, real data sets, and the user's own file."""
