"""Running configs: what the command lines share."""
