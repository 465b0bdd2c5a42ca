"""Towers: from images or token ids to features, and the heads that project features into the joint space."""
