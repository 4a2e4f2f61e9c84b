"""Evaluation of what there is: a finished run, a checkpoint, a model folder, or a model behind an endpoint, on one or several tasks."""
