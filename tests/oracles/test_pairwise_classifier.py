"""Cross-encoders: PairRM's layout against its own forward pass written out, and any classifier."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import nn

from comal_fast.config.oracle import PairwiseClassifierConfig
from comal_fast.errors import InputError
from comal_fast.oracles import Message, Messages, make_oracle, self_comparison
from rewards import save_pair_tokenizer

MESSAGES: Messages = (Message("user", "What is two and two?"),)
TEXTS = ["Four.", "Four", "", "Five, or so I was told."]
SIZES = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 4,
}


def options(folder: Path, **given: Any) -> PairwiseClassifierConfig:
    return PairwiseClassifierConfig(
        **{"model": str(folder), "dtype": "float32", "device": "cpu", **given}
    )


def averaged(first: dict[tuple[str, str], float]) -> np.ndarray:
    """(K, K) of both orders."""
    return np.array(
        [[0.5 if a == b else (first[a, b] + 1 - first[b, a]) / 2 for b in TEXTS] for a in TEXTS]
    )


def judged(folder: Path, **given: Any) -> np.ndarray:
    oracle = make_oracle(options(folder, **given))
    (matrix,) = oracle.compare([self_comparison(MESSAGES, TEXTS)])
    return matrix


@pytest.mark.parametrize("tokens", [1, 200, 16384])
def test_pairrm(tokens: int, tmp_path: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    markers = {"source_prefix_id": 261, "cand1_prefix_id": 262, "cand2_prefix_id": 263}
    torch.manual_seed(0)
    config = DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
    model = DebertaV2Model(config).eval()
    head = nn.Sequential(
        nn.Dropout(0.1), nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 3)
    ).eval()
    for parameter in (*model.parameters(), *head.parameters()):
        parameter.data.mul_(3)
    weights = {f"pretrained_model.{n}": t for n, t in model.state_dict().items()}
    weights |= {f"head_layer.{n}": t for n, t in head.state_dict().items()}
    model.config.update(markers)
    model.config.architectures = ["DebertaV2PairRM"]
    model.config.save_pretrained(tmp_path)
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "model.safetensors")
    names = ["<|source|>", "<|candidate1|>", "<|candidate2|>"]
    tokenizer = save_pair_tokenizer(tmp_path, *names)
    assert tokenizer.convert_tokens_to_ids(names) == list(markers.values())

    def logit(a: str, b: str) -> float:
        texts = zip(names, (MESSAGES[0][1], a, b), strict=True)
        ids = [i for name, text in texts for i in tokenizer(name + text)["input_ids"]]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            source, one, two = (states[ids.index(m)] for m in markers.values())
            scores = [head(torch.cat([source, c])) for c in (one, two)]
        return float((scores[0] - scores[1]).mean())

    logits = {(a, b): logit(a, b) for a, b in itertools.permutations(TEXTS, 2)}
    for temperature in (1.0, 3.0):
        first = {pair: float(expit(value / temperature)) for pair, value in logits.items()}
        matrix = judged(tmp_path, temperature=temperature, max_tokens_per_batch=tokens)
        np.testing.assert_allclose(matrix, averaged(first), atol=1e-5)
    assert len({round(v, 4) for v in logits.values()}) == 12

    lacking = load_file(tmp_path / "model.safetensors")
    del lacking["head_layer.4.bias"]
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no weights head_layer.4.bias in it"):
        judged(tmp_path)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_any_classifier(classes: int, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=classes)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(tmp_path)
    tokenizer = save_pair_tokenizer(tmp_path)
    if classes == 3:
        with pytest.raises(InputError, match=r"\(3,\) logits a pair, where one"):
            judged(tmp_path)
        return
    first = {}
    for a, b in itertools.permutations(TEXTS, 2):
        given = tokenizer(MESSAGES[0][1], f"{a}{tokenizer.sep_token}{b}", return_tensors="pt")
        assert set(given["token_type_ids"].unique().tolist()) == {0, 1}
        with torch.no_grad():
            values = model(**given).logits[0]
        gap = values[0] if classes == 1 else values[0] - values[1]
        first[a, b] = float(gap.sigmoid())
    np.testing.assert_allclose(judged(tmp_path), averaged(first), atol=1e-5)
    with pytest.raises(InputError, match="oracle.max_length: 30 is less than"):
        judged(tmp_path, max_length=30)
