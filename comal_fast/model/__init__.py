"""The policy: loading, adapters, packed forward passes, log-probs."""
