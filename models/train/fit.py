"""Trains the model; a run that was stopped goes on where its last checkpoint stands.

usage: python -m models.train.fit [--steps N] [--out FOLDER] ...
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from tokenizers import Tokenizer

from models.train import checkpoint, gguf_file, vocabulary
from models.train.batches import Recipe, batches
from models.train.checkpoint import Options, Progress
from models.train.curve import draw_curve
from models.train.held_out import Examiner
from models.train.optimizer import State, Step, make_optimizer, make_step
from models.train.transformer import Params, Shape, initial

_SAVE_EVERY_SECONDS = 120.0
_EXAMINATIONS = 5


def main(
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, picture and model.")] = Path("build/train"),
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.", min=_EXAMINATIONS)] = 9000,
    tokens_per_step: Annotated[int, typer.Option(help="Tokens of a batch.", min=1024)] = 8192,
    peak: Annotated[float, typer.Option(help="Largest learning rate of the matrices.", min=0.0)] = 0.005,
    layers: Annotated[int, typer.Option(help="Layers of the model.", min=1)] = Shape().num_layers,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the examples.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that make examples.", min=1)] = 1,
    from_gguf: Annotated[
        Path | None, typer.Option(help="Start from this model's weights and vocabulary.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Trains, with a checkpoint every two minutes; then writes clforge-tiny.gguf and a picture, training.png."""
    options: Options = {
        "--steps": steps,
        "--tokens-per-step": tokens_per_step,
        "--peak": peak,
        "--layers": layers,
        "--seed": seed,
        "--from-gguf": str(from_gguf) if from_gguf else None,
    }
    shape, optimizer, saved = Shape(num_layers=layers), make_optimizer(peak, steps), out / "checkpoint.npz"
    try:
        params, tokenizer = _start(from_gguf, shape, seed)
        state, progress = (params, optimizer.init(params)), Progress([], [])
        if saved.exists():
            state, progress = checkpoint.restore(saved, state, options)
            typer.echo(f"going on after step {len(progress.losses)} of {saved}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(tokenizer.to_str(), seed, tokens_per_step)
    run = _Run(saved, options, steps, recipe, workers, Examiner(tokenizer, shape))
    params = run.finish(state, progress, jax.jit(make_step(optimizer, shape), donate_argnums=0))
    gguf_file.write(out / "clforge-tiny.gguf", params, shape, tokenizer)
    draw_curve(out / "training.png", progress, tokens_per_step)
    typer.echo(f"wrote {out / 'clforge-tiny.gguf'} and {out / 'training.png'}")


def _start(from_gguf: Path | None, shape: Shape, seed: int) -> tuple[Params, Tokenizer]:
    """Weights and the vocabulary that they are for. ValueError for a file that cannot be trained."""
    if from_gguf is not None:
        return gguf_file.read(from_gguf, shape)
    return initial(shape, seed), vocabulary.learn(seed)


class _Run(NamedTuple):
    """The loop and what it needs."""

    saved: Path
    options: Options
    steps: int
    recipe: Recipe
    workers: int
    examiner: Examiner

    def finish(self, state: State, progress: Progress, step: Step) -> Params:
        """Takes the steps that are left, writing down losses and scores in ``progress``; the trained weights."""
        done = len(progress.losses)
        started = last_saved = time.monotonic()
        with _progress_bar() as bar:
            task = bar.add_task("", total=self.steps, completed=done, loss=float("nan"), rate=0.0)
            for number, batch in enumerate(batches(self.recipe, range(done, self.steps), self.workers), done + 1):
                state, value = step(state, batch)
                progress.losses.append(float(value))
                recent = progress.losses[-50:]
                rate = (number - done) * self.recipe.tokens_per_step / (time.monotonic() - started)
                bar.update(task, advance=1, loss=sum(recent) / len(recent), rate=rate)
                if number * _EXAMINATIONS % self.steps < _EXAMINATIONS:
                    self._examine(state[0], progress, bar)
                if time.monotonic() - last_saved > _SAVE_EVERY_SECONDS or number == self.steps:
                    checkpoint.save(self.saved, state, progress, self.options)
                    last_saved = time.monotonic()
        return state[0]

    def _examine(self, params: Params, progress: Progress, bar: ProgressBar) -> None:
        scores = self.examiner.scores(params)
        progress.scores.append((len(progress.losses), scores))
        shown = "  ".join(f"{name} {score:.2f}" for name, score in scores.items())
        bar.console.print(f"step {len(progress.losses)}: {shown}")


def _progress_bar() -> ProgressBar:
    return ProgressBar(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


if __name__ == "__main__":
    typer.run(main)
