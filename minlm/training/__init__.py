"""Training for both packages: loop, optimizers, checkpoints, command line. Nothing here knows of language or images."""
