"""Movie scripts: the built-in script, whose exact entropy is known, and a parser for scripts from other sources."""
