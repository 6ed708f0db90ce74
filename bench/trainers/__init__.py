"""Who runs a whole training step, a file each; every one in a process of its own."""

from bench.trainers import authors, ours, trl

OURS, TRL, AUTHORS = "comal_fast", "TRL DPOTrainer", "padded loop, full log-softmax"
TRAINERS = {OURS: ours.train, TRL: trl.train, AUTHORS: authors.train}
NAMES = {"comal": OURS, "trl": TRL, "authors": AUTHORS}  # what --peers calls them
