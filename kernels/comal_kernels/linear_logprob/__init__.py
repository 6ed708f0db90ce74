"""Log-probs of target tokens from hidden states and a head weight."""
