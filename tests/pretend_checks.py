"""Checks of the pretend device itself; `test_pretend_device.py` runs each in a process that has the device."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretend_device import NAME, Waits, counting, install
from tiny_models import tiny_language_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from unspoken.placement import CPU, moved


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, device=install())


# --- what it refuses -------------------------------------------------------------------------------------------------


def tensors_of_two_devices_do_not_mix() -> None:
    here, there = torch.ones(3), _ones(3)
    rows, table = torch.tensor([0, 1]), _ones(4, 3)
    for mixed in (
        lambda: there + here,
        lambda: here + there,
        lambda: there.add_(here),
        lambda: torch.cat([there, here]),
        lambda: table @ here,
        lambda: F.embedding(rows, table),
        lambda: torch.where(there > 0, there, here),
        lambda: here[moved(rows, install())],
        lambda: there.index_put_((moved(rows, install()),), torch.ones(2)),
        lambda: table.index_select(0, rows),
        lambda: F.cross_entropy(table, torch.zeros(4, dtype=torch.long)),
    ):
        with pytest.raises(RuntimeError, match="on the same device"):
            mixed()


def a_number_of_the_cpu_is_welcome_in_arithmetic_and_nowhere_else() -> None:
    number = torch.tensor(2.0)
    assert (_ones(2) * number).tolist() == [2, 2]
    assert torch.where(_ones(2) > 0, number, _ones(2)).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.stack([_ones(1)[0], number])


def numpy_needs_the_cpu() -> None:
    for ask in (lambda: _ones(2).numpy(), lambda: np.asarray(_ones(2)), lambda: np.array([_ones(2)])):
        with pytest.raises(TypeError, match="to numpy"):
            ask()
    assert _ones(2).cpu().numpy().tolist() == [1, 1]


def a_generator_draws_on_its_own_device() -> None:
    generator = torch.Generator().manual_seed(0)
    for draw in (
        lambda: torch.rand(2, device=install(), generator=generator),
        lambda: torch.randn(2, device=install(), generator=generator),
        lambda: torch.randint(3, (2,), device=install(), generator=generator),
        lambda: torch.randperm(3, device=install(), generator=generator),
        lambda: torch.multinomial(_ones(2), 1, generator=generator),
        lambda: _ones(2).normal_(generator=generator),
        lambda: _ones(2).exponential_(generator=generator),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            draw()
    assert moved(torch.rand(2, generator=generator), install()).device.type == NAME


def there_is_no_float64() -> None:
    for ask in (
        lambda: _ones(2).double(),
        lambda: torch.zeros(2, dtype=torch.float64, device=install()),
        lambda: torch.ones(2, dtype=torch.float64).to(install()),
        lambda: _ones(2).mean(dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="float64"):
            ask()


# --- what it counts --------------------------------------------------------------------------------------------------


def _waits(work: Any) -> dict[str, int]:
    with counting() as waits:
        work()
    return dict(waits.kinds)


def copies_between_host_and_device_wait_unless_they_need_not() -> None:
    here, there = torch.ones(3), _ones(3)
    assert _waits(lambda: here.to(install())) == {"to device": 1}
    assert _waits(lambda: torch.tensor([1, 2], device=install())) == {"to device": 1}
    assert _waits(there.cpu) == {"to host": 1}
    assert _waits(there.tolist) == {"to host": 1}
    assert _waits(lambda: there.copy_(here)) == {"to device": 1}
    assert _waits(lambda: here.copy_(there)) == {"to host": 1}
    assert _waits(lambda: here.to(install(), non_blocking=True)) == {}
    assert _waits(lambda: there.to(install())) == {}
    assert _waits(lambda: there.to(torch.float16)) == {}
    assert _waits(lambda: torch.zeros(3, device=install()) + torch.arange(3, device=install())) == {}


def what_must_know_a_result_waits() -> None:
    there, mask = _ones(3), _ones(3) > 0
    assert _waits(lambda: float(there.sum())) == {"value": 1}
    assert _waits(lambda: bool(mask.any())) == {"value": 1}
    assert _waits(lambda: there[mask]) == {"mask": 1}
    assert _waits(lambda: torch.where(mask)) == {"mask": 1}
    assert _waits(lambda: there.masked_select(mask)) == {"mask": 1}
    assert _waits(there.unique) == {"unique": 1}
    assert _waits(lambda: torch.equal(there, there)) == {"equal": 1}
    assert _waits(lambda: torch.multinomial(there, 1)) == {"multinomial": 1}
    assert _waits(lambda: torch.linalg.svdvals(_ones(2, 2))) == {"linalg": 1}
    assert _waits(lambda: torch.repeat_interleave(there, _ones(3).long())) == {"repeats": 1}
    assert _waits(lambda: torch.repeat_interleave(there, _ones(3).long(), output_size=3)) == {}
    assert _waits(lambda: there.masked_fill(mask, 0.0).masked_scatter(mask, there)) == {}
    assert _waits(lambda: there.__setitem__(mask, 0.0)) == {}
    assert _waits(lambda: there.__setitem__(mask, _ones(3))) == {"mask": 1}


def indices_of_the_host_wait() -> None:
    there = _ones(3)
    assert _waits(lambda: there[torch.tensor([0, 2])]) == {"indices": 1}
    assert _waits(lambda: there[[0, 2]]) == {"indices": 1}
    assert _waits(lambda: there[moved(torch.tensor([0, 2]), CPU)]) == {"indices": 1}
    rows = torch.arange(2, device=install())
    assert _waits(lambda: there[rows]) == {}
    assert _waits(lambda: there[1:]) == {}
    assert _waits(lambda: there[[]]) == {"indices": 1}


def a_wait_names_the_line_of_our_source() -> None:
    from unspoken.methods.jepa_reasoner.objective import effective_rank

    with counting() as waits:
        effective_rank(_ones(3, 3))
    assert set(waits.kinds) == {"linalg", "value"}
    assert all(line.startswith("methods/jepa_reasoner/objective.py:") for line in waits.lines)
    with counting() as waits:
        moved(torch.ones(3), install())
    assert set(waits.lines) == {"elsewhere"}


def counts_are_of_what_is_inside_and_may_be_nested() -> None:
    with counting() as outer:
        _ones(1).item()
        with counting() as inner:
            _ones(1).item()
    _ones(1).item()
    assert (outer.total, inner.total) == (2, 1)
    assert outer.kernels > inner.kernels > 0
    assert Waits().total == 0


# --- that it is a device otherwise -----------------------------------------------------------------------------------


def views_share_memory_and_take_gradients() -> None:
    base = _ones(2, 3)
    base[:, 1:].mul_(2)
    base[0].add_(base[1])
    assert base.tolist() == [[2, 4, 4], [1, 2, 2]]
    weight = _ones(2, 3).requires_grad_()
    (weight[:, 1:] * 3).sum().backward()
    assert weight.grad is not None
    assert weight.grad.device.type == NAME
    assert weight.grad.tolist() == [[0, 3, 3], [0, 3, 3]]


def shapes_that_change_in_place_are_seen() -> None:
    assert (_ones(4) @ _ones(4, 5)).shape == (5,)
    changed = torch.zeros(2, 1, 3, device=install())
    changed.squeeze_(1).t_()
    assert changed.shape == (3, 2)
    assert (changed + 1).tolist() == [[1, 1]] * 3


def tied_weights_stay_tied_on_the_way() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    before = module[0].weight
    module.to(install())
    assert module[0].weight is module[1].weight is before
    assert isinstance(before, nn.Parameter)
    assert before.device.type == NAME


def _gradients(model: nn.Module, ids: Tensor, *, again: bool) -> list[Tensor]:
    model.zero_grad()

    def scores(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    logits = checkpoint(scores, ids, use_reentrant=False) if again else scores(ids)
    F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return [moved(weight.grad, CPU) for weight in model.parameters() if weight.grad is not None]


def a_model_has_the_numbers_of_the_cpu() -> None:
    torch.set_num_threads(1)
    ids = torch.arange(12).view(2, 6)
    for family in ("unspoken", "llama", "gpt2"):
        model = tiny_language_model(family).train()
        expected = _gradients(model, ids, again=False)
        there = copy.deepcopy(model).to(install())
        for again in (False, True):
            found = _gradients(there, moved(ids, install()), again=again)
            apart = [float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)]
            # The CPU adds the parts of some fused kernels in another order.
            assert max(apart) < 1e-7, (family, again, apart)


def files_hold_what_the_device_held(folder: Path) -> None:
    model = tiny_language_model("llama").to(install())
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, moved(b, CPU)) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    file = io.BytesIO()
    torch.save({"held": _ones(2) * 3}, file)
    file.seek(0)
    assert torch.load(file, map_location=install(), weights_only=True)["held"].tolist() == [3, 3]
