"""Stand-ins that let the whole agent run on one machine: an API server and S3."""
