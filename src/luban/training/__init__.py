"""Training: the one loop, its optimizers, schedules and checkpoints, and how processes share the work."""
