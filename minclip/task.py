"""Contrastive training of a CLIP: its batches, their gradients, and the evaluation on dev.

B pairs, E embed_dim, W processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minclip.clip import CLIP, contrastive_loss, embed_batch
from minclip.config import RunConfig
from minclip.data.dataset import PairDataset
from minclip.data.records import Record
from minclip.data.tokenizer import Tokenizer
from minclip.evaluation.embed import embed_classes
from minclip.evaluation.evaluate import evaluate_records
from minclip.evaluation.zero_shot import zero_shot
from minclip.features import with_features
from minclip.gradcache import cached_backward
from minclip.losses import contrastive_metrics
from minlm.training.batches import Batch
from minlm.training.config import files_beside_weights
from minlm.training.distributed import average_gradients, gather
from minlm.training.loop import Metrics, Precision


class PairTask:
    """Match images and captions within a batch (Radford et al. 2021, section 2.3).

    model: with its initial weights, since the features of frozen towers are computed once, here.
    Raises ValueError if too many training images are damaged.
    """

    unit = "pairs"

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        model: CLIP,
        records: Sequence[Record],
        dev: Sequence[Record],
    ):
        self.config, self.tokenizer, self.dev = config, tokenizer, dev
        pairs = PairDataset(
            records,
            config.image_transform(train=True),
            tokenizer,
            config.model.text.context_length,
            config.train.seed,
            cache_bytes=int(config.cache_gib * 2**30),
        )
        self.dataset = with_features(pairs, model, config.train.batch_size)
        if self.dataset.image_features is None:
            pairs.fill_cache(workers=2, progress=True)
        self.batches = config.data.batches(self.dataset, config.train)
        self.inference_files = files_beside_weights(config, tokenizer)

    @property
    def corrupt(self) -> list[tuple[str, str]]:
        """Name and reason of each training image that was replaced so far."""
        return self.dataset.corrupt

    def backward(self, model: CLIP, batch: Batch, precision: Precision) -> tuple[Tensor, int, Metrics]:
        """Fill the gradients of the mean loss over the batch of all processes -> (loss, pairs, metrics)."""
        groups = gather(batch["groups"])  # (W B)

        def loss(images: Tensor, texts: Tensor) -> tuple[Tensor, Metrics]:
            pair = gather(images), gather(texts)  # (W B, E) each
            total, n_pairs = contrastive_loss(model, *pair, groups)
            return total / n_pairs, contrastive_metrics(*pair, model.logit_scale, groups, model.logit_bias)

        if self.config.train.micro_batches > 1:
            value, metrics = cached_backward(model, batch, self.config.train.micro_batches, precision, loss)
        else:
            with precision.forward():
                value, metrics = loss(*embed_batch(model, batch))
            precision.backward(value)
        average_gradients(model)
        return value.detach(), len(groups), metrics

    def after_step(self, model: CLIP) -> None:
        """Clamp logit_scale."""
        model.clamp_logit_scale()

    @torch.no_grad()
    def evaluate(self, model: CLIP) -> dict[str, float]:
        """Compute the loss on dev over whole batches, and zero-shot accuracy if there are classes, else recalls."""
        transform = self.config.image_transform(train=False)
        evaluation = evaluate_records(model, self.dev, transform, self.tokenizer)
        groups = torch.tensor([record.group for record in self.dev])
        sides = evaluation.image_embeddings, evaluation.text_embeddings[evaluation.first_text], groups
        size, device = self.config.train.batch_size, model.logit_scale.device
        batches = list(zip(*(side.to(device).split(size) for side in sides), strict=True))
        whole = batches[: len(self.dev) // size] or batches
        losses = [contrastive_loss(model, *batch) for batch in whole]
        metrics = {"dev_loss": float(sum(total for total, _ in losses) / sum(count for _, count in losses))}
        names, templates = self.config.data.classes()
        if names:
            prompts = embed_classes(model, self.tokenizer, names, templates)  # (classes, E)
            found = zero_shot(evaluation.image_embeddings, groups, prompts, names)
            return metrics | {"dev_zero_shot_top1": found["top1"]}
        for direction in ("image_to_text", "text_to_image"):
            for k in (1, 10):
                metrics[f"dev_{direction}_recall@{k}"] = evaluation.metrics[direction][f"recall@{k}"]
        return metrics

    def score(self, metrics: dict[str, float]) -> float:
        """Return the metric that selects the best weights: zero-shot accuracy, or the mean recall@10."""
        selected = [value for name, value in metrics.items() if name.endswith(("top1", "recall@10"))]
        return sum(selected) / len(selected)
