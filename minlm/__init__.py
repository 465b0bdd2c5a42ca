"""The Transformer, the language models made of it, and the training tools that minclip shares."""
