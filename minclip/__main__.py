"""Use a trained CLIP from the command line: python -m minclip COMMAND ..., each with --help.

    python -m minclip classify --checkpoint RUN --image cat.jpg --labels "cat,dog" --templates "a photo of a {}"
    python -m minclip search --checkpoint RUN --folder photos --text "a dog on a beach" --plot found.png
    python -m minclip caption --checkpoint RUN --image cat.jpg --captions captions.txt
    python -m minclip evaluate --checkpoint RUN [--preset NAME] [--data.root DIR] [--json metrics.json]
    python -m minclip export --checkpoint RUN --to hf-clip|open_clip|openai|safetensors|towers
    python -m minclip doctor --preset flickr8k --data.root DIR
    python -m minclip report RUN [RUN ...]

RUN is the folder of a training run, or a CLIP published by OpenAI, open_clip or Hugging Face (a file or folder), with
CLIP's merges file beside it or given with --vocabulary.
"""

import inspect
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from minclip import pretrained
from minclip.clip import CLIP
from minclip.config import RunConfig
from minclip.data.records import Record, open_image
from minclip.data.tokenizer import Tokenizer, WordPiece
from minclip.data.transforms import ImageTransform
from minclip.doctor import examine
from minclip.evaluation.embed import embed_classes, embed_images, embed_texts
from minclip.evaluation.evaluate import evaluate_all, format_metrics
from minclip.evaluation.plots import SHOWN, search_results
from minclip.evaluation.report import draw_curves
from minclip.evaluation.search import embed_folder, image_files
from minclip.presets import ABOUT, FULL, PRESETS
from minclip.pretrained import Format, is_published
from minclip.runs import load, read_config
from minlm.plots import compare_losses
from minlm.training.checkpoint import last_checkpoint
from minlm.training.command import command_line
from minlm.training.config import check_file, check_folder
from minlm.training.errors import run_main
from minlm.training.files import read_text, write_json
from minlm.training.findings import print_findings
from minlm.training.loop import choose_device
from minlm.training.options import (
    OneLineParser,
    add_device,
    add_options,
    call_command,
    checkpoint_parser,
    override,
)
from minlm.training.report import report_runs


def parser_of(command: Callable) -> OneLineParser:
    """Build a command's parser with --checkpoint and --vocabulary."""
    parser = checkpoint_parser(command, "minclip")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="CLIP's merges file, if not beside the weights",
    )
    return parser


def load_on_device(given: Namespace) -> tuple[CLIP, Tokenizer, ImageTransform]:
    """Load the checkpoint given on the command line, with the model on the device given there."""
    device = choose_device(given.device)
    model, tokenizer, transform = load(given.checkpoint, given.vocabulary)
    return model.to(device), tokenizer, transform


def warn_of_unfamiliar(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warn of words that the vocabulary spells letter by letter: the model has learned nothing about them."""
    if isinstance(tokenizer, WordPiece) and (words := tokenizer.unfamiliar(" ".join(texts))):
        more = f" and {len(words) - 5} more" if len(words) > 5 else ""
        warnings.warn(
            f"{', '.join(map(repr, words[:5]))}{more}: rare or absent in the captions that this model was trained "
            "with; scores of texts with such words mean little",
            stacklevel=2,
        )


def images(paths: list[Path]) -> list[Record]:
    """Wrap image files as records with an empty caption, for embedding."""
    return [Record(str(path), partial(open_image, path), ("",), i) for i, path in enumerate(paths)]


def check_top(top: int) -> None:
    """Raise ValueError unless --top is at least 1."""
    if top < 1:
        raise ValueError(f"--top {top} must be at least 1")


def classify(arguments: list[str]) -> None:
    """Classify images: probabilities of labels as the softmax of their logits (Radford et al. 2021, section 3.1).

    A model trained with the sigmoid loss gives each label an independent probability instead.
    """
    parser = parser_of(classify)
    add_device(parser)
    parser.add_argument("--image", type=Path, nargs="+", required=True)
    parser.add_argument("--labels", required=True, help="separated by commas")
    parser.add_argument(
        "--templates", nargs="+", default=["a photo of a {}"], help="prompts; {} is the label"
    )
    given = parser.parse_args(arguments)
    labels = [label.strip() for label in given.labels.split(",")]
    templates = [] if given.templates is parser.get_default("templates") else given.templates
    if not all(labels):
        raise ValueError(f"--labels {given.labels!r} has an empty label: give names separated by commas")
    model, tokenizer, transform = load_on_device(given)
    warn_of_unfamiliar(tokenizer, [*labels, *(template.replace("{}", " ") for template in templates)])
    classes = embed_classes(model, tokenizer, labels, given.templates)  # (labels, E)
    embeddings = embed_images(model, images(given.image), transform)  # (N, E)
    with torch.inference_mode():
        logits = model.cpu().logits(embeddings, classes)  # (N, labels)
    if model.logit_bias is None:
        probabilities = logits.softmax(dim=-1)  # (N, labels)
        print("probability that the label is the right one of these; they sum to 1")
    else:
        probabilities = logits.sigmoid()  # (N, labels)
        print("probability that the label fits the image, independently for each label")
    for path, row in zip(given.image, probabilities, strict=True):
        print(path)
        for i in row.argsort(descending=True).tolist():
            print(f"  {row[i]:7.2%}  {labels[i]}")


def search(arguments: list[str]) -> None:
    """Find the images of a folder and its subfolders that are closest to a text.

    Image embeddings are cached in RUN/search-cache, which may be deleted at any time.
    """
    parser = parser_of(search)
    add_device(parser)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--top", type=int, default=5, help="number of images to print")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot the first five")
    given = parser.parse_args(arguments)
    check_top(given.top)
    check_file(given.plot, "--plot")
    if given.plot and given.plot.suffix != ".png":
        raise ValueError(f"--plot {given.plot} must end in .png: the plot is a PNG file")
    if not given.text.strip():
        raise ValueError(f"--text {given.text!r} is empty: say what to search for")
    paths = image_files(given.folder)
    model, tokenizer, transform = load_on_device(given)
    warn_of_unfamiliar(tokenizer, [given.text])
    text = embed_texts(model, tokenizer, [given.text])[0]  # (E)
    paths, images = embed_folder(model, transform, given.folder, paths, given.checkpoint)  # (N, E)
    cosines = images @ text  # (N)
    best = cosines.argsort(descending=True)[: given.top].tolist()
    for i in best:
        print(f"{cosines[i]:.4f}  {paths[i]}")
    if given.plot:
        shown = best[:SHOWN]
        opened = [open_image(paths[i]) for i in shown]
        search_results(given.text, opened, cosines[shown].tolist(), given.plot)
        print(f"plot: {given.plot}")


def caption(arguments: list[str]) -> None:
    """Rank given captions for an image."""
    parser = parser_of(caption)
    add_device(parser)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="one caption per line")
    parser.add_argument("--top", type=int, default=5, help="number of captions to print")
    given = parser.parse_args(arguments)
    check_top(given.top)
    captions = [line.strip() for line in read_text(given.captions).splitlines() if line.strip()]
    if not captions:
        raise ValueError(f"no caption in {given.captions}: write one per line")
    model, tokenizer, transform = load_on_device(given)
    warn_of_unfamiliar(tokenizer, captions)
    image = embed_images(model, images([given.image]), transform)[0]  # (E)
    cosines = embed_texts(model, tokenizer, captions) @ image  # (M)
    for i in cosines.argsort(descending=True)[: given.top].tolist():
        print(f"{cosines[i]:.4f}  {captions[i]}")


def evaluate(arguments: list[str]) -> None:
    """Compute all metrics that fit the data: retrieval and caption choice; with classes, zero-shot and linear probe.

    Uses the data the model was trained with, or a preset's; published weights need a preset.
    """
    parser = parser_of(evaluate)
    add_device(parser)
    parser.add_argument("--preset", choices=PRESETS, help="evaluate on this preset's kind of data")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    given, _ = parser.parse_known_args(arguments)  # the other options depend on the data
    check_file(given.json, "--json")
    if given.preset:
        config = PRESETS[given.preset]
    else:
        published = given.checkpoint.exists() and is_published(given.checkpoint)
        config = None if published else read_config(last_checkpoint(given.checkpoint))
    if not isinstance(config, RunConfig):
        raise ValueError(
            f"{given.checkpoint} is not a run of train_clip.py and names no data: give --preset, one of "
            f"{', '.join(PRESETS)}"
        )
    add_options(parser, config, only="data")
    options = vars(parser.parse_args(arguments))
    config = override(config, {name: text for name, text in options.items() if name.startswith("data.")})
    splits = config.data.read()
    if given.split not in splits:
        raise ValueError(f"no split {given.split!r} in this data: choose one of {', '.join(splits)}")
    model, tokenizer, transform = load_on_device(given)
    names, templates = config.data.classes()
    # A probe is not evaluated on the images it was fitted on.
    fitted = splits.get("train", ()) if given.split != "train" else ()
    evaluation = evaluate_all(model, splits[given.split], transform, tokenizer, names, templates, fitted)
    print(format_metrics(evaluation.metrics, evaluation.seconds))
    if given.json:
        metrics = {"split": given.split, **evaluation.metrics, "seconds": evaluation.seconds}
        write_json(given.json, metrics)


def export(arguments: list[str]) -> None:
    """Write a model, a run's or a published one, in the format of another library."""
    parser = parser_of(export)
    parser.add_argument("--to", choices=get_args(Format), required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder (default: RUN-FORMAT)")
    given = parser.parse_args(arguments)
    out = given.out or Path(f"{given.checkpoint.resolve()}-{given.to}")
    check_folder(out)
    pretrained.export(*load(given.checkpoint, given.vocabulary), out, given.to)
    print(out)


def doctor(arguments: list[str]) -> None:
    """Report problems of the data and the config before training; the options are train_clip.py's.

    Exit status 1 if there is a problem.
    """
    print_findings(examine(command_line(PRESETS, inspect.getdoc(doctor), arguments, FULL, ABOUT).config))


def report(arguments: list[str]) -> None:
    """Write the report page of one run, finished or stopped, or of several runs side by side."""
    report_runs(arguments, report, "minclip", draw_curves, compare_losses)


COMMANDS = {
    command.__name__: command for command in (classify, search, caption, evaluate, export, doctor, report)
}


def main() -> None:
    """Run the command named by the first argument."""
    call_command(COMMANDS, __doc__)


run = partial(run_main, main)  # the command `minclip` of an installed project

if __name__ == "__main__":
    run()
