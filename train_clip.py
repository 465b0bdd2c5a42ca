"""Train CLIP: preset -> data -> tokenizer -> model -> fit() -> figures and pictures.

    python train_clip.py                                              the built-in world, five minutes on two cores
    python train_clip.py --preset flickr8k --data.root DIR --minutes 20
    python train_clip.py --preset pairs --data.path captions.csv      your own images and captions
    python train_clip.py --resume runs/NAME                           continue what was stopped
    torchrun --nproc-per-node 2 train_clip.py ...                     two processes share each batch

Any field of the config is an option: --image.n_layers 6 --train.lr 5e-4. The run's folder holds config.json,
metrics.jsonl, the checkpoints, the pictures and result.json.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minclip.clip import CLIP, batch_loss, contrastive_loss
from minclip.data.dataset import PairDataset, check_pictures
from minclip.data.features import with_features
from minclip.data.records import Record
from minclip.data.shapes import ShapesConfig, questions
from minclip.data.shards import ShardBatches, ShardsConfig
from minclip.embed import embed_classes
from minclip.evaluate import choice_accuracy, evaluate_all, evaluate_records, format_figures
from minclip.gradcache import cached_backward
from minclip.presets import FULL, PRESETS, RunConfig
from minclip.report import draw_pictures, draw_where_it_looks, draw_zero_shot
from minclip.runs import check_splits, classes_of, data_digest, make_model, make_tokenizer
from minclip.tokenizer import load_tokenizer
from minclip.zero_shot import zero_shot
from minlm.training.batches import Batches, fit_batch
from minlm.training.checkpoint import check_digest, check_same_data, write_json
from minlm.training.command import run_main, run_training
from minlm.training.config import files_beside_weights
from minlm.training.distributed import rank, world
from minlm.training.loop import check_hardware, choose_device, fit
from minlm.training.report import begin_files, finished_result, write_report


def train(config: RunConfig, run: Path, resume: bool = False) -> dict:
    """One training run, from data to figures -> what stands in result.json ({} in processes beside the first)."""
    started = time.monotonic()
    if resume and (result := finished_result(run, config)):
        return result
    check_hardware(config.train)
    splits = config.data.read()
    check_splits(splits)
    records, dev = splits["train"], splits["dev"]
    check_pictures(dev)
    if resume:
        tokenizer = load_tokenizer(run)
        check_digest(tokenizer.digest, config.text.vocab_digest, run)
    else:
        tokenizer = make_tokenizer(config, records)
        config = config.with_tokenizer(tokenizer)
    settings = fit_batch(config.train, len(records), world())
    if settings.batch_size < config.train.batch_size and rank() == 0:
        print(f"--train.batch_size is lowered to {settings.batch_size}: there are no more training items")
    config = replace(config, train=settings)
    torch.manual_seed(settings.seed)
    model = make_model(config, run, resume)
    config = replace(config, image=model.config.image, text=model.config.text)
    run.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        check_same_data(run, data_digest(records))
        begin_files(run, config, tokenizer, resume)
        print(f"{parameters(model)}; {len(records):,} training images; {run}")
    pairs = PairDataset(
        records,
        config.image_transform(train=True),
        tokenizer,
        config.text.context_length,
        settings.seed,
        cache_bytes=int(config.cache_gib * 2**30),
    )
    dataset = with_features(pairs, model.to(choose_device(settings.device)), settings.batch_size)
    if getattr(dataset, "image_features", None) is None:
        pairs.fill_cache(workers=2, progress=True)
    drawn, which = (settings.batch_size, settings.seed, settings.workers), {"rank": rank(), "world": world()}
    if isinstance(config.data, ShardsConfig):
        batches = ShardBatches(dataset, *drawn, config.data.buffer, **which)
    else:
        batches = Batches(dataset, *drawn, settings.neighbours, **which)
    classes = dict(zip(("class_names", "templates"), classes_of(config.data), strict=True))
    look = {"transform": config.image_transform(train=False), "tokenizer": tokenizer}
    state = fit(
        model,
        batches,
        batch_loss,
        settings,
        run,
        inference_files=files_beside_weights(config, tokenizer),
        evaluate=partial(dev_figures, dev=dev, batch_size=settings.batch_size, classes=classes, **look),
        score=dev_score,
        after_step=model.clamp_logit_scale,
        backward=cached_backward,
    )
    if rank():
        return {}

    # First what cannot be had again without training, on disk; then what is printed and drawn from it.
    evaluation = evaluate_all(model, dev, **look, **classes, train_records=records)
    asked = questions(config.data) if isinstance(config.data, ShapesConfig) else {}
    told_apart = {
        name: choice_accuracy(model, questions=some, **look) for name, some in asked.items() if some
    }
    result = {
        "data": type(config.data).__name__.removesuffix("Config").lower(),
        "split": "dev",
        **evaluation.figures,
        "zero_shot": told_apart,
        "corrupt_images": len(dataset.corrupt),
        "seconds": state.restored_seconds + time.monotonic() - started,
        "seed": settings.seed,
    }
    write_json(run / "result.json", result)
    for name, message in dataset.corrupt:
        print(f"replaced in training: {name}: {message}")
    print(format_figures(evaluation.figures, evaluation.seconds))
    for name, row in told_apart.items():
        print(f"zero-shot {name}: {row['accuracy']:.1%} (chance {row['chance']:.1%}, {row['n']} questions)")
    draw_pictures(run, dev, evaluation)
    draw_where_it_looks(run, model, dev, **look)
    if {"colour", "shape", "relation"} <= told_apart.keys():
        shown = [question for name in ("colour", "shape", "relation") for question in asked[name][:2]]
        draw_zero_shot(run, model, shown, **look)
    write_report(run)
    print(f"{result['seconds']:.0f} s in all; figures, pictures, report.html and checkpoints: {run}")
    return result


def parameters(model: CLIP) -> str:
    """How many there are, and how many are trained where not all are."""
    count, trained = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)
    )
    return f"{count:,} parameters" + (f", {trained:,} of them trained" if trained < count else "")


@torch.no_grad()
def dev_figures(model: CLIP, dev: list[Record], batch_size: int, classes: dict, **look) -> dict[str, float]:
    """What is followed during training: the loss on the dev split, in whole batches, and recall@10 both ways; where
    there are classes, zero-shot accuracy among them instead.
    """
    evaluation = evaluate_records(model, dev, **look)
    first_text = [int((evaluation.image_of_text == i).nonzero()[0]) for i in range(len(dev))]
    groups = torch.tensor([record.group for record in dev])
    sides = evaluation.image_embeddings, evaluation.text_embeddings[first_text], groups
    batches = list(zip(*(side.to(model.logit_scale.device).split(batch_size) for side in sides), strict=True))
    whole = batches[: len(dev) // batch_size] or batches
    losses = [contrastive_loss(model, *batch) for batch in whole]
    figures = {"dev_loss": float(sum(total for total, _ in losses) / sum(count for _, count in losses))}
    if classes["class_names"]:
        prompts = embed_classes(model, look["tokenizer"], **classes)  # (classes, E)
        found = zero_shot(evaluation.image_embeddings, groups, prompts, classes["class_names"])
        return figures | {"dev_zero_shot_top1": found["top1"]}
    for way in ("image_to_text", "text_to_image"):
        figures[f"dev_{way}_recall@10"] = evaluation.figures[way]["recall@10"]
    return figures


def dev_score(figures: dict[str, float]) -> float:
    """Score a dev evaluation, higher is better: zero-shot accuracy, or the mean of recall@10 both ways."""
    measures = [value for name, value in figures.items() if name != "dev_loss"]
    return sum(measures) / len(measures)


def main() -> None:
    run_training(train, PRESETS, __doc__, FULL)


if __name__ == "__main__":
    run_main(main)
