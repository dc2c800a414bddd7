"""The frozen base and the stacked adapters that many clients train in one pass."""
