"""One stage on `transformers.Trainer`, with what the stock Trainer lacks: atomic checkpoints and honest selection.

A stage's folder holds, while it runs, ``checkpoint-N`` (weights, optimiser, schedule, random state; the two newest) and
``best-N`` (a published folder, the best on validation so far). When it is done, ``best-N`` is renamed to ``model`` and
the checkpoints go. Every folder is written under a temporary name, synced, given a manifest with hashes and renamed, so
that a kill at any instant leaves the previous one loadable.

Where several ranks train together, rank 0 writes all of it, and a checkpoint can be continued by any number of ranks.
"""

from __future__ import annotations

import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_pt_utils import safe_globals

from unspoken import distributed, interruption
from unspoken.backbone.folder import clear, numbered, publish, read_manifest, remove, verify, write_manifest
from unspoken.backbone.masking import masks_unread
from unspoken.machine import Precision
from unspoken.methods.rows import Rows
from unspoken.storage import MODEL, discard, new_folder, one_line_error, refuse_link, sync
from unspoken.tasks.dataset import Batch, GeneratedDataset
from unspoken.training.adapters import merged
from unspoken.training.arguments import arguments_of, train_on
from unspoken.training.limits import explain_io_error, explain_oom, out_of_memory
from unspoken.training.optimizers import build_optimizer, warmed_up
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.sharding import assembled, blank_of, gathered_state, scattered_state, shard
from unspoken.training.stopping import EndsAtSignal, restore_random_state, restore_unlogged, write_unlogged

Validator = Callable[[PreTrainedModel], dict[str, Any]]


def _reading(checkpoint: str | None) -> AbstractContextManager[None]:
    """Inside, whatever is wrong with a checkpoint is an error of one line."""
    remedy = "remove it to resume from the checkpoint before it, or from the start of the stage if there is none"
    return one_line_error(f"{checkpoint} cannot be continued", remedy, out_of_memory)


class StageTrainer(Trainer):
    """Trains one stage of a recipe and keeps its best checkpoint.

    Args:
        recipe, stage: what to train.
        model: the stage's model, its starting weights loaded.
        data: training samples in the order in which they are read.
        folder: of the stage.
        seed: of the random numbers of training (dropout, the loader).
        device: where it trains.
        validator: measures the model on validation problems; must contain ``"score"``, which selects the checkpoint,
            and may have ``"chains"``, written out, which the history keeps.
        manifest: what every published folder of this stage records.
        report_to: loggers of the transformers integrations.
    """

    model: PreTrainedModel

    def __init__(
        self,
        *,
        recipe: Recipe,
        stage: Stage,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: GeneratedDataset,
        folder: Path,
        seed: int,
        device: torch.device,
        validator: Validator,
        manifest: dict[str, Any],
        report_to: list[str],
        callbacks: list[TrainerCallback],
    ) -> None:
        assert recipe.precision != "auto"  # `settled` has decided
        self.precision: Precision = recipe.precision
        self.recipe = recipe
        self.stage = stage
        self.objective = stage.objective
        self.validate = validator
        self.folder = folder
        self.manifest = manifest
        self._output_override: Path | None = None
        self._micro_batches: distributed.MicroBatches | None = None  # of the current step, if there are several
        self.terms: dict[str, Tensor] = {}
        self.terms_steps = 0
        self._began = time.monotonic()
        self._signal = EndsAtSignal()
        refuse_link(folder / "tensorboard")
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        arguments = arguments_of(recipe, stage, folder=folder, seed=seed, device=device, report_to=report_to)
        train_on(device, arguments)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data,  # the Trainer asks for one; `evaluate` measures with the validator instead
            data_collator=self._collate,
            processing_class=tokenizer,
            callbacks=[*callbacks, *stage.objective.callbacks(), self._signal],
        )
        self._blank: PreTrainedModel | None = None
        # The Trainer's name for weights that are sharded already, as `create_optimizer` does it.
        self.is_distributed_loading_by_transformers = distributed.sharded()
        # Every rank computes the same target table; DDP would send rank 0's round before every step.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self.model, [name for name, _ in self.model.named_buffers()]
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.model_accepts_loss_kwargs = False

    # --- data ----------------------------------------------------------------------------------------------------

    def _collate(self, batch: Batch) -> Batch:
        """A finished batch with the indices that its loss needs, computed on the host while the device is busy."""
        # A few architectures cannot score some positions alone; the objective then selects among all scores.
        if "supervised" in batch and "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            batch = {name: value for name, value in batch.items() if name != "supervised"}
        return self.objective.with_places(batch)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Batch], Any]:
        """The micro-batches of a step, which are counted before the first loss is computed."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) > 1:
            self._micro_batches = distributed.MicroBatches([self.objective.counts(batch) for batch in batches])
        return batches, items

    # --- loss ----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's optimiser, of weights that FSDP shares out before it sees them."""
        if self.optimizer is None:
            if distributed.sharded():
                self._blank = blank_of(self.model)
                shard(self.model, self.objective)
            self.optimizer: torch.optim.Optimizer = build_optimizer(
                self.model if model is None else model, self.stage.optimizer, self.precision
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        return warmed_up(super().create_scheduler(num_training_steps, optimizer), self.stage.optimizer)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss; its named terms are summed up for the next log line without leaving the device."""
        with masks_unread(), nullcontext() if self._micro_batches is None else self._micro_batches.following():
            loss, terms = self.objective.loss(model, inputs)
        # Shapes are known without waiting for the device; padding is counted.
        self.state.num_input_tokens_seen += distributed.world_size() * sum(
            value.ids.numel() if isinstance(value, Rows) else value.numel()
            for name, value in inputs.items()
            if isinstance(value, Rows) or name in ("input_ids", "text_ids", "labels")
        )
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, torch.zeros_like(value)) + value
        self.terms_steps += 1
        return (loss, None) if return_outputs else loss

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        # Whole gradients between micro-batches would take the memory that sharding saves.
        return nullcontext()

    def _clip_grad_norm(self, model: Any) -> Any:
        return distributed.full_tensor(super()._clip_grad_norm(model))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's terms to a line of training; stop a run whose loss is no longer a number."""
        if "loss" in logs and self.terms_steps:
            counted = self.terms_steps * distributed.world_size()
            # In one copy: each waits for the device.
            if self.terms:
                summed = torch.stack([distributed.all_reduce_sum(value) for value in self.terms.values()]).tolist()
                logs.update({name: value / counted for name, value in zip(self.terms, summed, strict=True)})
            self.terms, self.terms_steps = {}, 0
            if not math.isfinite(logs["loss"]):
                raise self.diverged(f"the loss is {logs['loss']}")
        if "train_runtime" in logs:
            # transformers measures wall-clock time, which changes if the clock is set.
            logs = {name: value for name, value in logs.items() if not name.endswith("_per_second")}
            logs["train_runtime"] = time.monotonic() - self._began
        super().log(logs, start_time)

    def diverged(self, what: str) -> ValueError:
        return ValueError(
            f"stage {self.stage.name!r}: {what} at step {self.state.global_step}; lower optimizer.lr or train in fp32. "
            "The last checkpoint is unharmed"
        )

    # --- selection on validation ---------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the model on the validation problems, and keep it if no earlier one was better."""
        sizes = self.recipe.evaluation
        with self._in_one_piece():
            self._refuse_infinite()
            self.model.eval()
            with (
                self._measuring(),
                explain_oom(
                    f"stage {self.stage.name!r}: measuring with evaluation.batch_size {sizes.batch_size} and "
                    f"evaluation.validation_problems {sizes.validation_problems}",
                    "lower evaluation.batch_size and run again, which goes on from the last checkpoint; or, in another "
                    "--output, evaluation.validation_problems",
                ),
            ):
                measured = self.validate(self.model)
            # The last bits may differ from rank to rank, and all must choose alike.
            reading = dict(distributed.run_on_main(lambda: measured))
            chains = reading.pop("chains", None)  # kept in the history alone: loggers take numbers
            self.model.train()
            self._warn(reading)
            metrics = {f"eval_{name}": value for name, value in reading.items()}
            self.log(dict(metrics))
            if chains:
                self.state.log_history[-1]["chains"] = chains
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            # What has learned problems of its own is not what it started from, whichever answers more of the recipe's.
            trained = self.stage.task is None or self.state.global_step > 0
            if trained and self.objective.candidate(self.state.global_step):
                distributed.run_on_main(lambda: self._keep(reading))
            if self._enough(self.state.global_step, reading.get("exact_match", 0.0)):
                self.control.should_training_stop = True
        return metrics

    def _refuse_infinite(self) -> None:
        """The last step may have made weights infinite, and training continues from what is saved."""
        if not torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all():
            raise self.diverged("weights are not finite")

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Inside, a signal ends the stage at once; to measure is the first thing that is done when it continues."""
        if distributed.world_size() > 1:
            yield
            return
        try:
            with interruption.allow_signals():
                yield
        except interruption.Interrupted:
            step = self.state.global_step
            if step > 0 and not (self.folder / f"checkpoint-{step}").exists():
                self._save_checkpoint(self.model_wrapped, None)
            raise

    def _enough(self, step: int, exact_match: float) -> bool:
        """Whether this exact match on the validation problems ends the stage after so many steps."""
        enough = self.stage.stop_at
        return enough is not None and step > 0 and self.objective.candidate(step) and exact_match >= enough

    @contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """Inside, every rank has all weights of the model, whether or not they are sharded."""
        if self._blank is None:
            yield
            return
        shared = self.model
        self.model = assembled(shared, self._blank)
        try:
            yield
        finally:
            self.model = shared

    def _keep(self, reading: dict[str, float]) -> None:
        best = numbered(self.folder, "best")
        # A later checkpoint wins a tie: it has seen more data at a lower learning rate.
        if not best or reading["score"] >= read_manifest(best[-1])["validation"]["score"]:
            self._export(self.folder / f"best-{self.state.global_step}", reading)
            for old in best:
                if old.name != f"best-{self.state.global_step}":
                    remove(old)

    def _warn(self, reading: dict[str, float]) -> None:
        earlier = [entry for entry in self.state.log_history if "eval_score" in entry]
        if not earlier or not distributed.is_main_process():
            return
        first = {name.removeprefix("eval_"): value for name, value in earlier[0].items() if name != "chains"}
        wrong = self.objective.warning(first, reading)
        if wrong is not None:
            warnings.warn(f"stage {self.stage.name!r} at step {self.state.global_step}: {wrong}", stacklevel=2)

    def _export(self, final: Path, reading: dict[str, float]) -> None:
        plain = merged(self.objective.exported(self.model))
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        with explain_io_error(final, SafetensorError):
            staging = new_folder(self.folder / "best")
            plain.save_pretrained(staging)
            self.processing_class.save_pretrained(staging)
            publish(staging, final, {**self.manifest, "step": self.state.global_step, "validation": reading})

    # --- atomic checkpoints --------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._output_override) if self._output_override else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of the Trainer, written aside and published with one rename."""
        if self._blank is None:
            self._refuse_infinite()
        staging = distributed.run_on_main(lambda: new_folder(self.folder / "checkpoint"))
        self._output_override = staging
        # torch.save raises RuntimeError for a full disk. Where ranks gather weights, a lost rank raises it too.
        others = (SafetensorError,) if self._blank is not None else (SafetensorError, RuntimeError)
        try:
            with explain_io_error(self.folder / f"checkpoint-{self.state.global_step}", *others):
                super()._save_checkpoint(model, trial)
        finally:
            self._output_override = None
        distributed.barrier()
        distributed.run_on_main(lambda: self._publish_checkpoint(staging))

    def _publish_checkpoint(self, staging: Path) -> None:
        written = staging / f"checkpoint-{self.state.global_step}"
        final = self.folder / written.name
        with explain_io_error(final):
            write_unlogged(self, written)
            publish(written, final, {**self.manifest, "step": self.state.global_step})
        discard(staging)
        for old in numbered(self.folder, "checkpoint")[:-2]:
            remove(old)

    def _run_epoch(self, **given: Any) -> None:
        """The Trainer's loop over steps, but not a step more where the checkpoint that is continued ends the stage."""
        if self.control.should_training_stop:
            return
        if given["resume_from_checkpoint"] is not None and given["epoch"] == given["epochs_trained"]:
            with _reading(given["resume_from_checkpoint"]):
                restore_unlogged(self, Path(given["resume_from_checkpoint"]))
        super()._run_epoch(**given)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights by the names that the model in training has, since `_load_from_checkpoint` converts none.

        The Trainer's version writes some, such as experts, as they are on the hub.
        """
        assert output_dir is not None
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        with self._in_one_piece():
            if distributed.is_main_process():
                self.model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)
                self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._blank is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered_state(self.optimizer.state_dict())
        if distributed.is_main_process():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that leaves weights as they began, which transformers would only log."""
        state = self.model.state_dict()
        loaded = {value.data_ptr() for name, value in state.items() if name not in load_result.missing_keys}
        unsaved = self.model._keys_to_ignore_on_save or ()
        missing = [
            # One of several tied weights is saved, and all of them are one tensor.
            name
            for name in load_result.missing_keys
            if state[name].data_ptr() not in loaded and name not in unsaved
        ]
        for fault, names in (("missing", missing), ("unexpected", load_result.unexpected_keys)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(f"{fault} weights {names[0]}{more}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            self._load_optimizer(checkpoint)

    def _load_optimizer(self, checkpoint: str | None) -> None:
        if self._blank is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location=self.args.device, weights_only=True)
        self.optimizer.load_state_dict(scattered_state(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        """That of rank 0, for all: every rank draws what the whole batch needs, so their states are the same."""
        if distributed.is_main_process():
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The Trainer's version looks for one file per rank, which is missing where the number of ranks changed."""
        assert checkpoint is not None
        with _reading(checkpoint), safe_globals():
            (file,) = Path(checkpoint).glob("rng_state*.pth")
            restore_random_state(torch.load(file, weights_only=True), self.args.device)

    # --- the whole stage -----------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train from the newest checkpoint, or from the start, and return the finished folder.

        Raises:
            ValueError: the checkpoint to resume from was truncated or changed, the loss diverged, or there is too
                little memory to measure.
            OSError: the disk is full.
            Interrupted: a signal came; there is a checkpoint of the last step.
        """
        with interruption.defer_signals():
            return self._run()

    def _run(self) -> Path:
        newest = distributed.run_on_main(self._newest)
        if newest is not None:
            with _reading(newest):
                before = TrainerState.load_from_json(str(Path(newest) / TRAINER_STATE_NAME))
                if before.global_step != read_manifest(Path(newest))["step"]:
                    raise ValueError(f"{TRAINER_STATE_NAME} is of step {before.global_step}")
            measured = any(
                "eval_score" in entry and entry["step"] == before.global_step for entry in before.log_history
            )
            # As in an undisturbed run, also after its last step, which is selected from even if no other is.
            due = before.global_step % self.args.eval_steps == 0 or before.global_step >= self.args.max_steps
            self.args.eval_on_start = not measured and due
            if any(self._enough(entry["step"], entry.get("eval_exact_match", 0.0)) for entry in before.log_history):
                self.state = before  # the stage had ended and was killed before it was published
                return distributed.run_on_main(self._finish)
        self.train(resume_from_checkpoint=newest)
        if self._signal.ended:
            interruption.raise_interrupted()
        return distributed.run_on_main(self._finish)

    def _newest(self) -> str | None:
        checkpoints = numbered(self.folder, "checkpoint")
        if not checkpoints:
            return None
        verify(checkpoints[-1])
        return str(checkpoints[-1])

    def _finish(self) -> Path:
        best = numbered(self.folder, "best")[-1]
        manifest = verify(best)
        history = [entry for entry in self.state.log_history if entry.get("step") is not None]
        final = self.folder / MODEL
        with explain_io_error(final):
            write_manifest(best, {**manifest, "history": history})
            best.replace(final)
            sync(self.folder)
        clear(self.folder)
        return final
