"""The volume on the host: walked, read and written without ever leaving it."""
