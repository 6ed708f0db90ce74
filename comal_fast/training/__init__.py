"""Items, batches and the trainer: what another loop could call."""
