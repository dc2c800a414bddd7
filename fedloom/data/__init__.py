"""From text to indices per client: tasks, sources, partition, draws."""
