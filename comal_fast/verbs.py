"""The verbs: what each is for and which module has its parser. Imports nothing that takes time."""

from __future__ import annotations

OVERVIEW = """\
usage: comal-fast [-q | -v] VERB …        comal-fast VERB --help: its options

To align a model
  init             a first configuration from five answers
  doctor           what is wrong here, or with a configuration, and its cure
  data, oracle     what a model is given of a file; a judge beside people
  plan             which mode fits a GPU, its memory by part and its time
  run              the whole loop, from prompts to report; resumes
  watch, report    a run as it goes; as a page with plots
  config           every option: as JSON schema, or explained
To use what came of it
  runs, clean      the runs of a folder; free the disk of a finished one
  compare, sweep   win rates of iterates and runs; a grid of settings
  export, merge    a model, answers or pairs for other programs; LoRA merged
To run one phase
  generate, judge, pair, logps, train, evaluate, diagnose
  replay           a training step without a gradient: what it was
To study the algorithm
  game, lm-game    exact games; a language model whose Nash policy is known

-q: only results and warnings; -v: more; completion SHELL; --version
"""

VERBS = {
    "init": ("init.command", "a first configuration from five answers"),
    "doctor": ("doctor.command", "what is wrong here, or with a configuration, and its cure"),
    "data": ("inspection.command", "data files: what a model would be given of them"),
    "oracle": ("oracle_check.command", "whether an oracle agrees with people"),
    "plan": ("plan.command", "which mode fits a GPU, its memory by part and its time"),
    "run": ("running", "the whole loop, from prompts to report; resumes"),
    "watch": ("watch.command", "a run as it goes: phase, time left, loss, win rate"),
    "report": ("report.command", "a run as a page with plots, at any moment of it"),
    "config": ("config.command", "every option: as JSON schema, or explained"),
    "runs": ("runs.command", "the runs below a folder: state, settings that differ, result, disk"),
    "clean": ("runs.command", "delete the weights of a finished run that are not to be kept"),
    "compare": ("compare.command", "win rates of iterates and runs, and the game between them"),
    "sweep": ("sweep.command", "run and resume a grid of settings; one table, one picture"),
    "export": ("export.command", "what a run made, for other programs"),
    "merge": ("merge", "an iterate of a LoRA run as a plain transformers folder"),
    "generate": ("running", "sample K responses per prompt from the current policy"),
    "judge": ("running", "the preference matrix of every prompt's samples"),
    "pair": ("running", "choose the preference pairs"),
    "logps": ("running", "log-probs of the reference and of the last iterate"),
    "train": ("running", "the prox step to the next iterate"),
    "evaluate": ("running", "held-out win rates of an iterate against the earlier ones"),
    "diagnose": ("running", "signs of a failing run, on what was measured up to an iteration"),
    "replay": ("replay", "a training step without a gradient: which tensor, which response"),
    "game": ("game.command", "solve a preference game exactly, by COMAL and its rivals"),
    "lm-game": ("lm_game.command", "a language model with a known Nash equilibrium"),
    "completion": ("completion", "what a shell needs to complete verbs, options and files"),
}
"""Verb → the module that adds its parser (`register`), and what it does."""
