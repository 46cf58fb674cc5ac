"""Model directories: found, fetched, looked into."""
