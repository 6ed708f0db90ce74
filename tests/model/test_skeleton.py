"""A model's modules without memory."""

from pathlib import Path

import torch

from comal_fast.config.schema import ModelConfig
from comal_fast.model.load import load_model, load_skeleton


def test_it_is_the_model_without_its_weights(tiny_folder: Path) -> None:
    """Of an iterate too, whose folder holds no file of `model.gguf_file`."""
    plain = ModelConfig(name_or_path=str(tiny_folder), device="cpu")
    whole = load_model(plain)
    dequantised = plain.model_copy(update={"gguf_file": "elsewhere.gguf"})
    for config, source in ((plain, None), (dequantised, str(tiny_folder))):
        skeleton = load_skeleton(config, source, torch.device("cpu"))
        assert all(p.is_meta for p in skeleton.parameters()) and not skeleton.training
        shapes = {name: (p.shape, p.dtype) for name, p in skeleton.named_parameters()}
        assert shapes == {name: (p.shape, p.dtype) for name, p in whole.named_parameters()}
