"""What can be set: every option once, read from flags, YAML and Python, and judged. Nothing here loads torch."""
