"""Pipelines between a volume and a repository, whatever its format."""
