"""Who runs a whole training step, a file each; every one in a process of its own."""

from bench.trainers import authors, ours, trl

OURS, TRL, AUTHORS = "comal_fast", "TRL DPOTrainer", "padded loop, full log-softmax"
PLUGGED = "TRL with ProxTrainer"
UNSHARED = "comal_fast, prompts repeated"
LEAN = "comal_fast, 8-bit AdamW in backward"
LEANEST = "comal_fast, the same, moments on the host, 24 GiB"
LORA = "comal_fast, LoRA of rank 16"
OTHER_NORM = {LORA}  # another gradient than the plain loop's: of what trains there
TRAINERS = {
    OURS: ours.train,
    UNSHARED: ours.train_unshared,
    LEAN: ours.train_lean,
    LEANEST: ours.train_leanest,
    LORA: ours.train_lora,
    TRL: trl.train,
    PLUGGED: trl.train_prox,
    AUTHORS: authors.train,
}
NAMES = {  # what --peers calls them
    "comal": OURS,
    "unshared": UNSHARED,
    "lean": LEAN,
    "leanest": LEANEST,
    "lora": LORA,
    "trl": TRL,
    "plug-in": PLUGGED,
    "authors": AUTHORS,
}
