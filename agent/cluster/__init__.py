"""Kubernetes: what to back up, from where, and what to say of it."""
