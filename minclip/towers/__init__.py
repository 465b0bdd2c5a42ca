"""Towers: images or token ids in, features out. A head then projects the features into the joint space."""
