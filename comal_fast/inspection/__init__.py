"""What a model would be given of a data file: tokens, what is trained on, lengths, what is not."""
