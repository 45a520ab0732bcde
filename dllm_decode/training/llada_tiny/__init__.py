"""Training of the bundled model: tokenizer, network, batches, optimiser, export."""
