"""A repository: somebody else's format, written and read exactly."""
