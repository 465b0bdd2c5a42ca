"""The pictures of a run: its loss, and what the trained model makes of the dev split."""

from collections.abc import Sequence
from pathlib import Path

from minclip.clip import CLIP
from minclip.data.records import Question, Record
from minclip.evaluate import Evaluation, embed_images, embed_texts
from minclip.plots import retrieval_grid, similarity_matrix, zero_shot_examples
from minclip.tokenizer import ClipBPE, WordPiece
from minclip.transforms import ImageTransform
from minlm.plots import loss_curve

SHOWN_PAIRS, SHOWN_QUERIES, SHOWN_QUESTIONS = 8, 4, 6


def draw_pictures(run: Path, records: Sequence[Record], evaluation: Evaluation) -> None:
    """loss.png, similarity.png and retrieval.png in the run's folder."""
    loss_curve(run, run / "loss.png")
    first_text = [int((evaluation.image_of_text == i).nonzero()[0]) for i in range(len(records))]
    pairs = spread(len(records), SHOWN_PAIRS)
    similarity_matrix(
        [records[i].open() for i in pairs],
        [records[i].captions[0] for i in pairs],
        evaluation.image_embeddings[pairs],
        evaluation.text_embeddings[[first_text[i] for i in pairs]],
        run / "similarity.png",
    )
    queries = spread(len(records), SHOWN_QUERIES)
    embeddings = evaluation.image_embeddings, evaluation.text_embeddings
    retrieval_grid(records, *embeddings, queries, run / "retrieval.png")


def draw_zero_shot(
    run: Path,
    model: CLIP,
    questions: Sequence[Question],
    transform: ImageTransform,
    tokenizer: WordPiece | ClipBPE,
) -> None:
    """zero_shot.png: some of the questions with the probabilities of their choices."""
    asked = [questions[i] for i in spread(len(questions), SHOWN_QUESTIONS)]
    images = embed_images(model, [question.record for question in asked], transform)  # (N, E)
    probabilities = []
    for question, image in zip(asked, images, strict=True):
        cosines = embed_texts(model, tokenizer, question.choices) @ image  # (choices)
        probabilities.append((model.logit_scale.exp().item() * cosines).softmax(dim=0).tolist())
    zero_shot_examples(
        [question.record.open() for question in asked],
        [question.choices for question in asked],
        probabilities,
        [question.answer for question in asked],
        run / "zero_shot.png",
    )


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers 0 to count - 1, evenly spaced."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]
