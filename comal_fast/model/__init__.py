"""The policy: loading, packed forward passes, log-probs, sampling."""
