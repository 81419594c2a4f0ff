"""Training: trainers, stages, budgets, checkpoints, rewards, distillation."""
