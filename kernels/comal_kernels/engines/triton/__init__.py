"""The Triton backend: kernels, their launches and their tuning."""
