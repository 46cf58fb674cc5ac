"""Images as folders: unpacked on this machine, and run there without an engine."""
