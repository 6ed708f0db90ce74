"""Prox losses of packed responses from hidden states and a head weight."""
