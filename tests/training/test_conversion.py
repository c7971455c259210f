"""A causal language model as one of a method that was never trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_hub import save_hub_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from unspoken.training.conversion import converted


@pytest.mark.parametrize(("method", "inner"), [("jepa-reasoner", "backbone"), ("codi", "decoder.model")])
def test_a_converted_model_has_the_weights_of_the_model(method: str, inner: str, tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path)
    model, prompt_format = converted(folder, method)
    plain = AutoModelForCausalLM.from_pretrained(folder).base_model
    weights = model.get_submodule(inner).state_dict()
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())
    assert not model.training
    assert prompt_format.tokenizer("What?")["input_ids"] == AutoTokenizer.from_pretrained(folder)("What?")["input_ids"]
