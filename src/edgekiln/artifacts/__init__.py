"""What an artifact is, by its content: `kiln inspect`."""
