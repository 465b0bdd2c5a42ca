"""Evaluation of a trained model: embeddings, retrieval, zero-shot classification, and the plots of them."""
