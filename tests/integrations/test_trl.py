"""`ProxTrainer` beside TRL's own DPOTrainer, step by step, and beside plain formulas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import byte_tokenizer, tiny_model

pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

from comal_kernels import prox_loss  # noqa: E402
from comal_kernels.integrations.trl import (  # noqa: E402
    ProxConfig,
    ProxTrainer,
    version,  # noqa: E402
)

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf_harmless_pairs.jsonl"
STEPS = 20
METRICS = [
    "loss", "entropy", "num_tokens", "logits/chosen", "logits/rejected", "mean_token_accuracy",
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    "logps/chosen", "logps/rejected",
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    """Human pairs where they are at hand, else made-up ones, several to a prompt."""
    rows: list[dict[str, str]] = []
    if PAIRS.exists():
        with PAIRS.open() as file:
            every = (json.loads(line) for line in file)
            short = (r for r in every if max(len(r["chosen"]), len(r["rejected"])) < 260)
            rows = [{k: r[k] for k in ("chosen", "rejected")} for r in islice(short, 24)]
    else:
        for i in range(24):
            prompt = f"\n\nHuman: what is {i // 2} plus two?\n\nAssistant:"
            rows.append({"chosen": f"{prompt} {i // 2 + 2}.", "rejected": f"{prompt} No {i}, no."})
    return Dataset.from_list(rows)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from datasets import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    yield
    enable_progress_bars()


def options(folder: Path, **more: Any) -> dict[str, Any]:
    """Of either trainer's configuration."""
    given = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return given | more


def policy(folder: Path) -> Any:
    """A model that TRL finds again by its name, for its reference."""
    model = tiny_model()
    model.save_pretrained(folder / "start")
    model.config._name_or_path = str(folder / "start")
    return model


def make(folder: Path, config: Any, rows: Dataset, **arguments: Any) -> Any:
    trainer = ProxTrainer if isinstance(config, ProxConfig) else DPOTrainer
    model = arguments.pop("model", None) or policy(folder)
    return trainer(
        model, args=config, train_dataset=rows, processing_class=byte_tokenizer(), **arguments
    )


def history(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def agree(ours: Any, theirs: Any, names: list[str] = METRICS) -> None:
    """Every step's loss to 1e-5, its other metrics as closely as float32 sums of them are."""
    a, b = history(ours), history(theirs)
    assert len(a) == len(b) == STEPS and len({row["loss"] for row in b}) == STEPS
    for mine, other in zip(a, b, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        for name in names:
            if name == "rewards/accuracies" and abs(other["rewards/margins"]) < 1e-3:
                continue  # the policy is its reference still: rounding decides
            assert mine[name] == pytest.approx(other[name], abs=1e-4, rel=1e-4), name


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian")


MODES: dict[str, dict[str, Any]] = {
    "padded": {"packing": False},
    "packed": {"share_prompts": False},
    "prefix-shared": {},
    "live reference": {"precompute_ref_log_probs": False},
    "accumulation": {"gradient_accumulation_steps": 3},
    "no recomputation": {"gradient_checkpointing": False},
    "cut": {"max_length": 90},
    "cut at the beginning": {"max_length": 90, "truncation_mode": "keep_end"},
}
OURS = {"packing", "share_prompts"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [pytest.param(m, marks=pytest.mark.nightly) if m == "accumulation" else m for m in MODES],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dpo_follows_trl(mode: str, pairs: Dataset, tmp_path: Path) -> None:
    more = MODES[mode]
    theirs = {k: v for k, v in more.items() if k not in OURS}
    ours = make(tmp_path, ProxConfig(**options(tmp_path), prox="dpo", **more), pairs)
    ours.train()
    other = make(tmp_path, DPOConfig(**options(tmp_path), **theirs), pairs)
    other.train()
    agree(ours, other)


@pytest.mark.slow
@pytest.mark.parametrize("continued", [False, True])
def test_adapters_follow_trl(continued: bool, pairs: Dataset, tmp_path: Path) -> None:
    """A fresh adapter, whose reference is the base, and one that was trained before."""

    def trained(config: Any) -> Any:
        arguments: dict[str, Any] = {"peft_config": lora()}
        if continued:
            from peft import get_peft_model

            torch.manual_seed(1)
            arguments = {"model": get_peft_model(policy(tmp_path), lora())}
            for name, x in arguments["model"].named_parameters():
                if "lora_B" in name:
                    x.data.normal_(std=0.05)
        trainer = make(tmp_path, config, pairs, **arguments)
        trainer.train()
        return trainer

    agree(trained(ProxConfig(**options(tmp_path))), trained(DPOConfig(**options(tmp_path))))


@pytest.mark.slow
def test_resumed_it_follows_trl(pairs: Dataset, tmp_path: Path) -> None:
    """From the middle of an epoch; the tokens are counted on, where TRL begins anew."""
    given = options(tmp_path, save_strategy="steps", save_steps=STEPS // 2)
    make(tmp_path, ProxConfig(**given), pairs).train()
    again = make(tmp_path, ProxConfig(**given), pairs)
    seen: list[Tensor] = []
    run = again._compute_loss
    again._compute_loss = lambda *x: seen.append(run(*x)) or seen[-1]
    again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS // 2}"))
    assert len(seen) == STEPS // 2
    other = make(tmp_path, DPOConfig(**options(tmp_path)), pairs)
    other.train()
    agree(again, other)


Formula = Callable[[dict[str, Tensor]], Tensor]  # (B,) of logp, ref, last, length: (2, B) each


class Plain(DPOTrainer):
    """The same loop with a formula of full logits."""

    formula: Formula
    start: Any
    reference: Any

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        del return_outputs
        ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:]

        def logps(policy: Any) -> Tensor:
            z = policy(ids, attention_mask=inputs["attention_mask"]).logits[:, :-1]
            picked = z.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            return (picked * mask).sum(1).view(2, -1)

        terms = {"logp": logps(model), "length": mask.sum(1).view(2, -1)}
        with torch.no_grad():
            terms |= {"ref": logps(self.reference), "last": logps(self.start)}
        for name in ("chosen", "rejected"):  # TRL's log wants them
            self._metrics["train"][f"logps/{name}"].append(0.0)
        return type(self).formula(terms).mean()


def difference(x: Tensor) -> Tensor:
    return x[0] - x[1]


def conservative(t: dict[str, Tensor]) -> Tensor:
    z = 0.3 * difference(t["logp"] - t["ref"])
    positive, negative = torch.nn.functional.logsigmoid(torch.stack([z, -z]))
    return -0.9 * positive - 0.1 * negative


def ipo(t: dict[str, Tensor]) -> Tensor:
    return (difference(t["logp"] - t["ref"]) - 1 / (2 * 0.05)) ** 2


def ipo_of_means(t: dict[str, Tensor]) -> Tensor:
    return (difference((t["logp"] - t["ref"]) / t["length"]) - 1 / (2 * 0.5)) ** 2


def inpo(t: dict[str, Tensor]) -> Tensor:
    mix = 0.3 * t["ref"] + 0.7 * t["last"]
    return (difference(t["logp"] - mix) - 1 / (2 * 0.05)) ** 2


FORMULAS: dict[str, tuple[Formula, dict[str, Any]]] = {
    "dpo": (conservative, {"label_smoothing": 0.1, "beta": 0.3}),
    "ipo": (ipo, {"eta": 0.05}),
    "ipo of means": (ipo_of_means, {"eta": 0.5, "average_log_prob": True}),
    "inpo": (inpo, {"eta": 0.05, "tau_eta_ratio": 0.3}),
}


def other_reference(folder: Path) -> Any:
    model = policy(folder)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMULAS)
def test_losses_follow_their_formulas(name: str, pairs: Dataset, tmp_path: Path) -> None:
    formula, hyper = FORMULAS[name]
    given = options(tmp_path, learning_rate=1e-5)
    config = ProxConfig(**given, prox=name.split()[0], **hyper)
    ours = make(tmp_path, config, pairs, ref_model=other_reference(tmp_path))
    ours.train()
    policies = {"start": policy(tmp_path), "reference": other_reference(tmp_path)}
    trainer = type("Other", (Plain,), {"formula": staticmethod(formula), **policies})
    plain = trainer(
        policy(tmp_path),
        ref_model=other_reference(tmp_path),
        args=DPOConfig(**given),
        train_dataset=pairs,
        processing_class=byte_tokenizer(),
    )
    plain.train()
    # of what is left of sums of 800 nats, which float32 holds to 6e-5
    close = 1e-5 if ours.args.average_log_prob else 1e-4
    for mine, other in zip(history(ours), history(plain), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=close)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_ipo_of_means_is_trls_ipo(pairs: Dataset, tmp_path: Path) -> None:
    config = ProxConfig(**options(tmp_path), prox="ipo", eta=0.1, average_log_prob=True)
    ours = make(tmp_path, config, pairs)
    ours.train()
    other = make(tmp_path, DPOConfig(**options(tmp_path), loss_type="ipo", beta=0.1), pairs)
    other.train()
    agree(ours, other, [name for name in METRICS if not name.startswith("rewards/")])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_float16_scaler_s_factor_reaches_the_loss(
    pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `loss_scale`, without which float16 gradients underflow; the loss does not change."""
    given: list[float | None] = []

    def spy(*arguments: Any, loss_scale: float | None, **options: Any) -> Any:
        given.append(loss_scale)
        return prox_loss(*arguments, loss_scale=loss_scale, **options)

    monkeypatch.setattr("comal_kernels.integrations.trl.trainer.prox_loss", spy)
    trainer = make(tmp_path, ProxConfig(**options(tmp_path), prox="dpo"), pairs)
    inputs = next(iter(trainer.get_train_dataloader()))
    plain = trainer.compute_loss(trainer.model, inputs)
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    scaled = trainer.compute_loss(trainer.model, inputs)
    assert given == [None, 1024.0]
    assert torch.equal(plain.detach(), scaled.detach())


def scored(rows: Dataset) -> Dataset:
    """With what the other losses read."""
    torch.manual_seed(5)
    names = ["chosen_reward", "rejected_reward", "chosen_preference", "rejected_preference"]
    values = torch.rand(len(rows), len(names)).tolist()
    more = [dict(zip(names, v, strict=True)) | {"preference": 0.9} for v in values]
    return Dataset.from_list([a | b for a, b in zip(rows, more, strict=True)])


@pytest.mark.parametrize(
    ("prox", "hyper"),
    [
        ("dpo", {}),
        ("sppo", {"eta": 0.1, "log_z": 0.2}),
        ("dro", {"tau": 0.1}),
        ("rebel", {"eta": 0.1}),
    ],
)
def test_columns_reach_the_loss(
    prox: str, hyper: dict[str, float], pairs: Dataset, tmp_path: Path
) -> None:
    """The first step's loss is prox_loss of the columns: the policy is its own reference there."""
    given = options(tmp_path, max_steps=1, per_device_train_batch_size=24)
    rows = scored(pairs)
    trainer = make(tmp_path, ProxConfig(**given, prox=prox, **hyper), rows)
    trainer.train()
    row = history(trainer)[0]
    w, v = torch.tensor(rows["chosen_reward"]), torch.tensor(rows["rejected_reward"])
    a, b = torch.tensor(rows["chosen_preference"]), torch.tensor(rows["rejected_preference"])
    if prox == "dpo":
        expected = torch.tensor(2.0).log()
    elif prox == "rebel":
        expected = ((w - v) ** 2).mean()
    elif prox == "sppo":
        expected = (((torch.cat([a, b]) - 0.5) / 0.1 - 0.2) ** 2).mean()
    else:
        numbers = {p: [i for i, q in enumerate(prompts(rows)) if q == p] for p in prompts(rows)}
        parts = [torch.cat([w[i], v[i]]) for i in numbers.values()]
        expected = torch.cat([0.5 * (x - x.mean()) ** 2 for x in parts]).mean()
    assert row["loss"] == pytest.approx(float(expected), rel=1e-4)
    lacking = pairs if prox in ("sppo", "dro", "rebel") else None
    if lacking is not None:
        with pytest.raises(
            ValueError, match=f"^dataset: {prox} reads .*; expected columns chosen_"
        ):
            make(tmp_path, ProxConfig(**given, prox=prox, **hyper), lacking)


def prompts(rows: Dataset) -> list[str]:
    from trl.data_utils import extract_prompt

    return [extract_prompt(row)["prompt"] for row in rows]


def test_log_probs_are_read_from_their_files(
    pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tmp_path, max_steps=1) | {"logps_dir": str(tmp_path / "kept")}
    inpo_of = {"prox": "inpo", "eta": 0.1, "tau_eta_ratio": 0.3}
    reference = other_reference(tmp_path)
    first = make(tmp_path, ProxConfig(**given, **inpo_of), pairs, ref_model=reference)
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 2  # of the reference, and of the last iterate

    def never(*args: Any) -> Any:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(ProxTrainer, "_computed", never)
        again = make(
            tmp_path,
            ProxConfig(**given, **inpo_of),
            pairs,
            ref_model=other_reference(tmp_path),
        )
        kept = again.train_dataset.to_dict()
        assert kept == first.train_dataset.to_dict()
        # a column of one's own is taken as it is; other weights or cuts mean other files
        mine = first.train_dataset.map(lambda row: {"ref_chosen_logps": -1.0})
        own = make(tmp_path, ProxConfig(**given), mine)
        assert set(own.train_dataset["ref_chosen_logps"]) == {-1.0}
        with pytest.raises(AssertionError, match="computed again"):
            make(tmp_path, ProxConfig(**given, max_length=80), pairs)
    files[0].write_bytes(files[0].read_bytes()[:100])  # torn: computed anew
    third = make(
        tmp_path, ProxConfig(**given, **inpo_of), pairs, ref_model=other_reference(tmp_path)
    )
    assert third.train_dataset.to_dict() == kept


def test_the_last_iterate_of_an_adapter_is_with_it(pairs: Dataset, tmp_path: Path) -> None:
    """Its reference is the base; an adapter that begins away from zero is the last iterate's."""
    from peft import LoraConfig

    away = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    config = ProxConfig(**options(tmp_path), prox="inpo", eta=0.1, tau_eta_ratio=0.3)
    rows = make(tmp_path, config, pairs, peft_config=away).train_dataset
    plain = make(tmp_path, config, pairs).train_dataset
    assert rows["ref_chosen_logps"] == pytest.approx(plain["ref_chosen_logps"], rel=1e-5)
    assert plain["last_chosen_logps"] == plain["ref_chosen_logps"]
    off = torch.tensor(rows["last_chosen_logps"]) - torch.tensor(rows["ref_chosen_logps"])
    assert off.abs().min() > 1e-3


def test_evaluation(pairs: Dataset, tmp_path: Path) -> None:
    given = options(tmp_path, max_steps=2, per_device_eval_batch_size=5)
    results = []
    for config in (ProxConfig(**given), DPOConfig(**given)):
        trainer = make(tmp_path, config, pairs, eval_dataset=pairs.select(range(11)))
        results.append(trainer.evaluate())
    for name in ("loss", *METRICS[1:]):
        a, b = (result[f"eval_{name}"] for result in results)
        assert a == pytest.approx(b, abs=1e-4, rel=1e-4), name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prox": "kto"}, "loss: 'kto' is unknown"),
    ({"prox": "inpo", "eta": 0.1}, "tau_eta_ratio"),
    ({"prox": "ipo", "eta": 0.1, "beta": 0.2}, "beta: ipo has none; expected its own: eta"),
    ({"prox": "dpo", "eta": 0.1}, "eta"),
    ({"loss_type": "hinge"}, "loss_type: .*hinge.* is none of prox; expected its default"),
    ({"ld_alpha": 0.5}, "ld_alpha: 0.5 is none of prox"),
    ({"pad_to_multiple_of": 8}, "pad_to_multiple_of: packed rows have no padding; expected None"),
    (
        {"prox": "inpo", "eta": 0.1, "tau_eta_ratio": 0.3, "precompute_ref_log_probs": False},
        "precompute_ref_log_probs: False, and inpo reads the policy that training starts from",
    ),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_would_be_ignored_is_refused(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        ProxConfig(**options(tmp_path), **given)


def test_what_the_trainer_cannot_use_is_refused(pairs: Dataset, tmp_path: Path) -> None:
    from peft import PromptTuningConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    config = ProxConfig(**options(tmp_path))
    with pytest.raises(ValueError, match="^data_collator: a DataCollatorForPreference; expected"):
        make(tmp_path, config, pairs, data_collator=DataCollatorForPreference(pad_token_id=0))
    with pytest.raises(ValueError, match="^compute_metrics: there are no logits to give it"):
        make(tmp_path, config, pairs, compute_metrics=lambda _: {})
    with pytest.raises(ValueError, match="^args: a DPOConfig; expected a ProxConfig"):
        ProxTrainer(policy(tmp_path), args=DPOConfig(**options(tmp_path)), train_dataset=pairs)
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="^peft_config: .* puts tokens before a row"):
        make(tmp_path, config, pairs, peft_config=soft)


def test_another_trl_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(ImportError, match=r"written for TRL 1\.16, and TRL 1\.17\.0 is installed"):
        version.known_trl()


def test_a_model_that_cannot_be_packed_is_refused(pairs: Dataset, tmp_path: Path) -> None:
    model = policy(tmp_path)
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="packed attention can't do layers of the kind linear"):
        make(tmp_path, ProxConfig(**options(tmp_path)), pairs, model=model)
    make(tmp_path, ProxConfig(**options(tmp_path), packing=False), pairs, model=model)
