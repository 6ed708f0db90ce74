"""What computes: products, log-probs and gradients of a chunk of rows, a backend each."""
