"""Running configs: hooks, resuming, and what the command lines share."""
