"""Who runs a whole training step, a file each; every one in a process of its own."""

from bench.trainers import authors, ours, trl

OURS, TRL, AUTHORS = "comal_fast", "TRL DPOTrainer", "padded loop, full log-softmax"
UNSHARED = "comal_fast, prompts repeated"
TRAINERS = {OURS: ours.train, UNSHARED: ours.train_unshared, TRL: trl.train, AUTHORS: authors.train}
NAMES = {
    "comal": OURS,
    "unshared": UNSHARED,
    "trl": TRL,
    "authors": AUTHORS,
}  # what --peers calls them
