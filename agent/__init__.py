"""podlift: a node agent that moves Kubernetes volumes into restic repositories on S3."""

__version__ = "0.1.0"
