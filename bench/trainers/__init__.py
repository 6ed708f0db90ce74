"""Who runs a whole training step, a file each; every one in a process of its own."""

from bench.trainers import authors, ours, trl

OURS, TRL, AUTHORS = "comal_fast", "TRL DPOTrainer", "padded loop, full log-softmax"
PLUGGED = "TRL with ProxTrainer"
UNSHARED = "comal_fast, prompts repeated"
LEAN = "comal_fast, 8-bit AdamW in backward"
LEANEST = "comal_fast, the same, moments on the host, 24 GiB"
TRAINERS = {
    OURS: ours.train,
    UNSHARED: ours.train_unshared,
    LEAN: ours.train_lean,
    LEANEST: ours.train_leanest,
    TRL: trl.train,
    PLUGGED: trl.train_prox,
    AUTHORS: authors.train,
}
NAMES = {  # what --peers calls them
    "comal": OURS,
    "unshared": UNSHARED,
    "lean": LEAN,
    "leanest": LEANEST,
    "trl": TRL,
    "plug-in": PLUGGED,
    "authors": AUTHORS,
}
