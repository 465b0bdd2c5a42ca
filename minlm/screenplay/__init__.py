"""Movie scripts: the built-in one, whose exact entropy is known, and the parser of those found in the wild."""
