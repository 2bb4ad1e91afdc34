"""Object storage under one prefix: put, get, range, list, delete."""
