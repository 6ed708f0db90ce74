"""Several ranks under torchrun: rank 0 runs the loop, the others do their part of what it starts.

`group`: messages between ranks, and how a run of many ends. `collective`: a function that all ranks
run when rank 0 calls it. `sharding`, `checkpoint`: a model and a checkpoint over all ranks, by
PyTorch's FSDP2 and DCP.
"""
