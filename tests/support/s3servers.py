"""S3 servers for tests, over TLS, on loopback."""
