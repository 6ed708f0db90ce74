"""Reward models for real: packed against alone, padded, encoders, code of their own, bad ones."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.config.oracle import BradleyTerryConfig, PairwiseLmConfig
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.model.judge import conversation_ids, source_key
from comal_fast.model.score import can_pack, last_states, shared
from comal_fast.oracles import Comparison, make_oracle, self_comparison
from comal_fast.oracles.bradley_terry import BradleyTerryOracle
from comal_fast.store.directory import RunDirectory
from rewards import ASKED, FAMILIES, plain_reward, reward_model, save_pair_tokenizer, save_reward
from tiny import byte_tokenizer


def options(folder: Path, **given: Any) -> BradleyTerryConfig:
    return BradleyTerryConfig(
        **{"model": str(folder), "dtype": "float32", "device": "cpu", **given}
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 100, 16384])
def test_packed_is_one_at_a_time(family: str, tokens: int, tmp_path: Path) -> None:
    folder = save_reward(tmp_path / "model", family, **FAMILIES[family])
    oracle = BradleyTerryOracle(options(folder, max_tokens_per_batch=tokens))
    rewards = oracle.rewards(ASKED)
    assert can_pack(oracle.model)
    alone = [plain_reward(folder, messages, r) for messages, rs in ASKED for r in rs]
    np.testing.assert_allclose(rewards, alone, rtol=1e-5, atol=1e-5)
    assert len({round(r, 4) for r in alone}) == len(alone)  # every response tells


def test_prefixes_of_each_other() -> None:
    model = reward_model()
    rows = [[7, 8, 9], [7, 8], [7], [9], [7, 8, 9, 10, 11]]
    for group in (rows, rows[:2], rows[3:4], [*rows[:3], rows[4]]):
        with torch.no_grad():
            alone = [
                model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
                for row in group
            ]
        np.testing.assert_allclose(
            last_states(model, [group, rows[:1]], 64)[:-1], torch.stack(alone), atol=1e-5
        )


def test_a_prompt_goes_through_once() -> None:
    sequences = shared([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3]])
    assert {tuple(s.prompt_ids) for s in sequences} == {(1, 2, 3)}
    assert [len(s.inputs) for s in sequences] == [1, 2, 0]


def test_padding_at_the_end_is_not_read(llama: Path, tmp_path: Path) -> None:
    """transformers reads the last token that is no padding, whatever the template ends with."""
    folder = shutil.copytree(llama, tmp_path / "padded")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template += f"{tokenizer.pad_token}{tokenizer.pad_token}"
    tokenizer.save_pretrained(folder)
    rewards = BradleyTerryOracle(options(folder)).rewards(ASKED[:1])
    alone = [plain_reward(folder, ASKED[0][0], r) for r in ASKED[0][1]]
    np.testing.assert_allclose(rewards, alone, rtol=1e-5, atol=1e-5)


def test_weights_of_four_bits(tmp_path: Path) -> None:
    """Packed as the model alone with such weights; its head is left as it was."""
    pytest.importorskip("bitsandbytes")
    folder = save_reward(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    oracle = BradleyTerryOracle(options(folder, quantization="nf4"))
    rewards = oracle.rewards(ASKED)
    assert oracle.model.score.weight.dtype == torch.float32
    assert any("4bit" in type(module).__name__ for module in oracle.model.modules())
    alone = []
    for messages, responses in ASKED:
        for response in responses:
            ids = torch.tensor([conversation_ids(oracle.tokenizer, messages, response)])
            with torch.no_grad():
                alone.append(float(oracle.model(input_ids=ids).logits[0, 0]))
    np.testing.assert_allclose(rewards, alone, atol=1e-4)
    whole = BradleyTerryOracle(options(folder))
    assert whole.fingerprint() != oracle.fingerprint()
    assert np.abs(whole.rewards(ASKED) - rewards).max() > 1e-3


def test_a_gguf_file_is_told_from_another() -> None:
    given = {"model": "someone/judge", "gguf_file": "q2.gguf"}
    one, two = (
        source_key(PairwiseLmConfig(**{**given, "gguf_file": f"{q}.gguf"})) for q in ("q2", "q8")
    )
    assert one != two


def test_paths_are_whole(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is read from other folders, where a hub may have a model of that name."""
    monkeypatch.chdir(llama.parent)
    found = options(Path(llama.name), cache="~/judge.sqlite")
    assert found.model == str(llama)
    assert found.cache == str(Path.home() / "judge.sqlite")
    assert BradleyTerryConfig(model="someone/rm").model == "someone/rm"


def test_more_tokens_than_positions(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_labels": 1}
    config = BertConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=40
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    save_pair_tokenizer(tmp_path)
    with pytest.raises(InputError, match="it has 40 positions, fewer than the .* tokens of"):
        BradleyTerryOracle(options(tmp_path)).rewards(ASKED)


def test_policy_and_judge_are_never_held_together(
    tiny_run: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    load, held = BradleyTerryOracle.load, []

    def counted(self: BradleyTerryOracle) -> Any:
        gc.collect()
        held.append(sum(isinstance(x, LlamaForCausalLM) for x in gc.get_objects()))
        return load(self)

    monkeypatch.setattr(BradleyTerryOracle, "load", counted)
    gc.collect()
    before = sum(isinstance(x, LlamaForCausalLM) for x in gc.get_objects())
    oracle = json.dumps({"name": "bradley_terry", "model": str(llama), "dtype": "float32"})
    text = tiny_run.read_text().replace("oracle: {target_words: 2}", f"oracle: {oracle}")
    tiny_run.write_text(text)
    run_all(load_config(tiny_run, ["algorithm.iterations=1"]))
    assert held == [before, before]  # judge, evaluate


def test_the_matrix(llama: Path) -> None:
    messages, texts = ASKED[0]
    oracle = make_oracle(options(llama, temperature=0.5, batch_size=4))
    several = [Comparison(messages, texts[:2], texts[2:]), self_comparison(*ASKED[1])]
    between, among = oracle.compare(several)
    r = np.array([plain_reward(llama, messages, text) for text in texts])
    wanted = expit((r[:2, None] - r[None, 2:]) / 0.5)
    np.testing.assert_allclose(between, wanted, atol=1e-4)
    assert among.dtype == np.float64 and (among.diagonal() == 0.5).all()
    np.testing.assert_allclose(among + among.T, 1, atol=1e-15)
    oracle.release()
    np.testing.assert_array_equal(next(oracle.compare(several)), between)  # loaded anew


def test_fingerprint(llama: Path, tmp_path: Path) -> None:
    same = shutil.copytree(llama, tmp_path / "copy")
    other = save_reward(tmp_path / "other", seed=1)

    def of(folder: Path, **given: Any) -> str:
        return make_oracle(options(folder, **given)).fingerprint()

    assert of(llama) == of(same) == of(llama, batch_size=2, max_length=99)
    different = [of(other), of(llama, temperature=2.0), of(llama, dtype="bfloat16")]
    assert len({of(llama), *different}) == 4
    hub = (
        BradleyTerryConfig(model="someone/rm"),
        BradleyTerryConfig(model="someone/rm", revision="v2"),
    )
    assert len({make_oracle(o).fingerprint() for o in hub}) == 2  # nothing is fetched for it


def test_encoder_pairs(tmp_path: Path) -> None:
    """No chat template: prompt and response as a pair of texts, in padded batches."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.for_model(
        "bert",
        vocab_size=261,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=4,
        num_labels=1,
        type_vocab_size=2,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(tmp_path)
    save_pair_tokenizer(tmp_path)
    oracle = BradleyTerryOracle(options(tmp_path, max_tokens_per_batch=150))
    rewards = oracle.rewards(ASKED)
    reader = AutoTokenizer.from_pretrained(tmp_path)
    alone = []
    for messages, responses in ASKED:
        for response in responses:
            said = "\n".join(m.content for m in messages)
            given = reader(said, response, return_tensors="pt")
            assert bool(given["token_type_ids"].any()) == bool(response)
            with torch.no_grad():
                alone.append(float(model(**given).logits[0, 0]))
    np.testing.assert_allclose(rewards, alone, rtol=1e-5, atol=1e-5)


CODE = """
from dataclasses import dataclass
import torch
from transformers import LlamaForSequenceClassification
from transformers.utils import ModelOutput

@dataclass
class Scored(ModelOutput):
    score: torch.Tensor = None
    gates: torch.Tensor = None

class Gated(LlamaForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        return Scored(score=-2 * out.logits[:, 0], gates=out.logits.repeat(1, 3))
"""


def test_named_output_of_code_that_comes_along(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "gated")
    (folder / "gated.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "gated.Gated"}
    config["architectures"] = ["Gated"]
    (folder / "config.json").write_text(json.dumps(config))
    trusted = {"trust_remote_code": True}
    rewards = BradleyTerryOracle(options(folder, score="score", **trusted)).rewards(ASKED)
    alone = [-2 * plain_reward(llama, m, r) for m, rs in ASKED for r in rs]
    np.testing.assert_allclose(rewards, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"oracle.score: gates of .* has shape \(8, 3\)"):
        BradleyTerryOracle(options(folder, score="gates", **trusted)).rewards(ASKED)
    with pytest.raises(InputError, match="has no output reward; it has score, gates"):
        BradleyTerryOracle(options(folder, score="reward", **trusted)).rewards(ASKED)


def test_what_is_no_reward_model(tiny_folder: Path, llama: Path, tmp_path: Path) -> None:
    def say(folder: Path, **given: Any) -> str:
        with pytest.raises(InputError) as caught:
            list(make_oracle(options(folder, **given)).compare([self_comparison(*ASKED[0])]))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no weights of score.weight in it" in say(tiny_folder)  # a language model
    assert "no such folder" in say(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "oracle.model" in say(tmp_path / "empty")
    assert "shape (5, 2), where a reward is one number" in say(
        save_reward(tmp_path / "two", num_labels=2)
    )
    assert "max_length: 20 is less than the" in say(llama, max_length=20)
    bare = shutil.copytree(llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template" in say(bare)
    broken = reward_model()
    broken.score.weight.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "nan")
    byte_tokenizer().save_pretrained(tmp_path / "nan")
    assert "its reward is not finite for the prompt 'What is two and two?'" in say(tmp_path / "nan")


def test_a_refusing_template(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "strict")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="refuses a conversation of system, user.*no system"):
        BradleyTerryOracle(options(folder)).rewards(ASKED[1:2])


def test_a_run_with_the_papers_mixture(tiny_run: Path, llama: Path, tmp_path: Path) -> None:
    """½ and ½ of two reward models; the whole loop, and again without judging anew."""
    other = save_reward(tmp_path / "other", seed=1)
    members = [
        {"name": "bradley_terry", "model": str(m), "dtype": "float32", "device": "cpu"}
        for m in (llama, other)
    ]
    text = tiny_run.read_text().replace(
        "oracle: {target_words: 2}",
        f"oracle: {json.dumps({'name': 'mixture', 'members': members})}",
    )
    tiny_run.write_text(text)
    config = load_config(tiny_run, ["algorithm.iterations=1"])
    summary = run_all(config)
    assert summary["cycle_rate"] == 0  # of two members of one weight
    run = RunDirectory(config.output_dir)
    judged = run.iteration(1).judgments
    before = judged.path.stat().st_mtime_ns
    run_all(load_config(run.config))  # what a run wrote down is a configuration
    assert judged.path.stat().st_mtime_ns == before
    rates = []
    for name, more in (("own", []), ("other", ["oracle.weights=[0.999, 0.001]"])):
        out = tmp_path / f"{name}.json"
        assert main(["compare", str(run), *more, "--json", str(out)]) == 0
        pair, *_ = json.loads(out.read_text())["pairs"]
        rates.append(pair["win_rate"])
    assert rates[0] != rates[1]
    assert main(["compare", str(run), "oracle.wieghts=[1, 1]"]) == 2
    alone = ["oracle.name=bradley_terry", f"oracle.model={llama}", "oracle.dtype=float32"]
    assert main(["compare", str(run), *alone]) == 0  # options of the mixture are not its own
    named = shutil.copytree(run.path, tmp_path / "oracle-of-mine")
    text = (named / "config.yaml").read_text()
    (named / "config.yaml").write_text(text.replace("batch_size: 64", "batch_size: 7"))
    assert main(["compare", str(run), str(named)]) == 0  # asked in another way alone
