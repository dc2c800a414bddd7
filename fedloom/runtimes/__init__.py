"""Where clients run. A runtime moves tensors and schedules; it holds no learning mathematics."""
