"""What is wrong with the data that a config names, before it is trained on."""
