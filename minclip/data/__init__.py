"""From files to training pairs: one file per format, all giving the same records; transforms and tokenizers."""
