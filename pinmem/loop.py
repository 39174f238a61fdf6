"""The loop of a run: what happens between its iterations, and when one goes wrong."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from pinmem import checkpoint
from pinmem.covariances import choose_covariances
from pinmem.health import NotFinite
from pinmem.run_state import restore
from pinmem.stop import Stopped

if TYPE_CHECKING:
    from pinmem.train import Trainer


def fit(trainer: Trainer) -> dict[str, float]:
    """See ``Trainer.fit``."""
    try:
        with trainer.signals:
            try:
                while True:
                    try:
                        _iterate(trainer)
                        break
                    except NotFinite as error:
                        _go_back(trainer, error)
            except Stopped as stop:
                # Under the handlers still: a second SIGTERM, which torchrun sends, waits.
                raise _stopped(trainer, stop) from None
        trainer.report.page(trainer.model, trainer.validation)
        trainer.report.close(trainer.start_scores, trainer.scores)
        return trainer.scores
    except OSError as error:
        raise trainer.folder.full(error) from None
    finally:
        trainer.report.stop()


def _iterate(trainer: Trainer) -> None:
    """From where the trainer is to the last iteration."""
    config, report, watch = trainer.config, trainer.report, trainer.watch
    if not trainer.has_memory:
        trainer.initialise_memory()
    loader = None
    while True:
        done = trainer.iteration
        ends = done in (0, config.iterations)
        validates = ends or (config.validate_every > 0 and done % config.validate_every == 0)
        if validates and trainer.validated != done:
            _save_before(trainer)
            trainer.validate()
        # After every validation: a run that goes back before one would log it twice.
        if (validates or done % config.checkpoint_every == 0) and trainer.unsaved:
            trainer.save("last.pt")
        if done >= config.iterations:
            return
        if done == config.whitening_start:
            _save_before(trainer)
            with trainer.signals.at_once():
                choose_covariances(
                    trainer.model, trainer.sources, config, report.track, trainer.ranks
                )
        trainer.signals.check(trainer.ranks)
        began = time.perf_counter()
        if loader is None:
            loader = iter(trainer.batches.loader(done))
        images, labels = next(loader)
        waited = time.perf_counter() - began
        if done not in trainer.skipped:
            watch.add(done, trainer.step(images, labels))
        trainer.iteration += 1
        trainer.unsaved = True
        # Reading the numbers waits for a GPU: there it is done when they are wanted.
        logs = not trainer.iteration % config.log_every or trainer.iteration == config.iterations
        if trainer.device.type == "cpu" or logs:
            report.add(watch.fetch())
        rate = trainer.optimizer.param_groups[0]["lr"]
        report.step(trainer.iteration, waited, rate, len(trainer.skipped) + trainer.overflows)


def _save_before(trainer: Trainer) -> None:
    """Before what stops at once, on one of several ranks too, and draws random numbers.

    Not before the first validation, which may find that its labels are wrong.
    """
    if trainer.unsaved and trainer.iteration > 0:
        trainer.save("last.pt")


def _go_back(trainer: Trainer, error: NotFinite) -> None:
    """To the last checkpoint, and on from there without the batch that the error names."""
    last, saved = trainer.folder.last, trainer.saved
    if saved < 0 or len(trainer.skipped) >= trainer.config.skip_bad_batches:
        kept = f"{last} is of iteration {saved}" if saved >= 0 else "nothing was saved"
        raise NotFinite(error.iteration, f"{error}; {kept}") from None
    skipped = [*trainer.skipped, error.iteration]
    restore(trainer, checkpoint.load(last))
    trainer.skipped = skipped
    trainer.save("last.pt")
    trainer.report.log.info(
        f"{error}; going on from iteration {trainer.iteration} without this batch"
    )
    trainer.report.go_back(trainer.iteration, trainer.validated)


def _stopped(trainer: Trainer, stop: Stopped) -> Stopped:
    """Save what there is; the same with a message that says how to go on."""
    name = signal.Signals(stop.signal).name
    if trainer.saved < 0 and trainer.iteration == 0:
        return Stopped(stop.signal, f"stopped by {name} before there was anything to save")
    if trainer.unsaved:
        trainer.save("last.pt")
    return Stopped(
        stop.signal,
        f"stopped by {name} at iteration {trainer.iteration}; "
        f"to go on: {trainer.folder.how_to_go_on()}",
    )
