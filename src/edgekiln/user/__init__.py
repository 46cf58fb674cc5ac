"""The user's own settings: what pip and apt are told on this machine."""
