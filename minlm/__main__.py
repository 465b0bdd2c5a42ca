"""Use a trained language model from the command line: python -m minlm COMMAND ..., each with --help.

    python -m minlm generate --checkpoint RUN --prompt "HOT ROD" --stream
    python -m minlm evaluate --checkpoint RUN [--data.path FILE] [--random_batches 200] [--json metrics.json]
    python -m minlm export --checkpoint RUN --to hf-gpt2
    python -m minlm doctor --preset script-lm --data.path FILE
    python -m minlm report RUN [RUN ...]

RUN is the folder of a training run.
"""

import inspect
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from minlm.data import ReplyDataset, TextFileConfig, encoded
from minlm.doctor import examine
from minlm.evaluate import evaluate_replies, evaluate_text, random_batches_loss
from minlm.generate import SamplingConfig
from minlm.plots import compare_losses, loss_curve
from minlm.presets import ABOUT, FULL, PRESETS, RunConfig
from minlm.pretrained import save_gpt2
from minlm.runs import load
from minlm.screenplay.script import parse_script, reply_pairs
from minlm.screenplay.source import ScreenplayConfig
from minlm.seq2seq import EncoderDecoder
from minlm.training.checkpoint import last_checkpoint
from minlm.training.command import command_line
from minlm.training.config import check_file, check_folder, load_config
from minlm.training.errors import run_main
from minlm.training.files import write_json
from minlm.training.findings import print_findings
from minlm.training.loop import choose_device
from minlm.training.options import add_device, add_options, call_command, checkpoint_parser, override
from minlm.training.report import report_runs
from minlm.writing import stream_text, write, write_best

parser_of = partial(checkpoint_parser, package="minlm")


def generate(arguments: list[str]) -> None:
    """Continue a prompt; an encoder-decoder replies to it."""
    parser = parser_of(generate)
    add_device(parser)
    parser.add_argument("--prompt", nargs="+", required=True, help="one text, or several")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="end before the first of these")
    parser.add_argument("--stream", action="store_true", help="print each piece as soon as it is sampled")
    parser.add_argument(
        "--beam", type=int, default=0, metavar="W", help="beam search with W beams instead of sampling"
    )
    add_options(parser, SamplingConfig())
    given = vars(parser.parse_args(arguments))
    asked = {name: given[name] for name in given.keys() & asdict(SamplingConfig()).keys()}
    config: SamplingConfig = override(SamplingConfig(), asked)
    if given["beam"] and (given["stream"] or given["stop"] or asked.keys() - {"max_new_tokens"}):
        raise ValueError("--beam takes no option of sampling but --max_new_tokens: leave out the others")
    device = choose_device(given["device"])
    model, tokenizer, _ = load(given["checkpoint"])
    model.to(device)
    replies = isinstance(model, EncoderDecoder)  # the prompt is not a part of its text
    prompts = given["prompt"]
    if given["stream"]:
        for i, prompt in enumerate(prompts):
            print("" if replies else prompt, end="", flush=True)
            own = replace(config, seed=config.seed + i)
            for piece in stream_text(model, tokenizer, prompt, own, given["stop"]):
                print(piece, end="", flush=True)
            print()
        return
    if given["beam"]:
        texts = write_best(model, tokenizer, prompts, config.max_new_tokens, given["beam"])
    else:
        texts = write(model, tokenizer, prompts, config, given["stop"])
    for prompt, text in zip(prompts, texts, strict=True):
        print(text if replies else prompt + text)


def evaluate(arguments: list[str]) -> None:
    """Compute the loss on the validation text, of the run's own data or of another file."""
    parser = parser_of(evaluate)
    add_device(parser)
    parser.add_argument("--stride", type=int, help="tokens between windows (default: half the context)")
    parser.add_argument(
        "--random_batches",
        type=int,
        default=0,
        metavar="N",
        help="also nanoGPT's estimate, from N batches",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    given, rest = parser.parse_known_args(arguments)  # the other options depend on the data
    check_file(given.json, "--json")
    if given.random_batches < 0:
        raise ValueError(f"--random_batches {given.random_batches} must be at least 0")
    config: RunConfig = load_config(RunConfig, last_checkpoint(given.checkpoint) / "config.json")
    if isinstance(config.data, ScreenplayConfig) and any(word.startswith("--data.path") for word in rest):
        config = replace(config, data=TextFileConfig())
    add_options(parser, config, only="data")
    options = vars(parser.parse_args(arguments))
    config = override(config, {name: text for name, text in options.items() if name.startswith("data.")})
    device = choose_device(given.device)
    started = time.monotonic()
    texts = config.data.read()
    model, tokenizer, _ = load(given.checkpoint)
    model.to(device)
    if isinstance(model, EncoderDecoder):
        if given.stride is not None or given.random_batches:
            raise ValueError(
                "--stride and --random_batches are for models that continue a text: leave them out"
            )
        pairs = reply_pairs(parse_script(texts["validation"]))
        dataset = ReplyDataset(pairs, tokenizer, config.model.context_length)
        metrics = evaluate_replies(model, dataset).metrics()
    else:
        ids = np.concatenate(list(encoded(texts["validation"], tokenizer)))
        metrics = evaluate_text(model, tokenizer, ids, given.stride).metrics()
        if given.random_batches:
            size, seed = config.train.batch_size, config.train.seed
            estimate = random_batches_loss(model, ids, size, seed, given.random_batches)
            metrics["random_batches_nats_per_token"] = estimate
    metrics["seconds"] = time.monotonic() - started
    for name, value in metrics.items():
        print(f"{name:>30}  {value:.4f}" if isinstance(value, float) else f"{name:>30}  {value:,}")
    if given.json:
        write_json(given.json, metrics)


def export(arguments: list[str]) -> None:
    """Write a TransformerLM with GPT-2's layout (learned positions) as a Hugging Face folder."""
    parser = parser_of(export)
    parser.add_argument("--to", choices=("hf-gpt2",), required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder (default: RUN-FORMAT)")
    given = parser.parse_args(arguments)
    out = given.out or Path(f"{given.checkpoint.resolve()}-{given.to}")
    check_folder(out)
    model, tokenizer, _ = load(given.checkpoint)
    if isinstance(model, EncoderDecoder):
        raise ValueError(
            f"{given.checkpoint} is an encoder-decoder: give a run that continues text, as GPT-2 does"
        )
    save_gpt2(model, out, tokenizer)
    print(out)


def doctor(arguments: list[str]) -> None:
    """Report problems of a text and config before step 0; the options are train_lm.py's.

    Exit status 1 if there is a problem.
    """
    print_findings(
        examine(command_line(PRESETS, inspect.getdoc(doctor) or "", arguments, FULL, ABOUT).config)
    )


def report(arguments: list[str]) -> None:
    """Write the report of a run, finished or stopped, or of several, with their curves and metrics side by side."""
    report_runs(arguments, report, "minlm", lambda run: loss_curve(run, run / "loss.png"), compare_losses)


COMMANDS = {command.__name__: command for command in (generate, evaluate, export, doctor, report)}

main = partial(call_command, COMMANDS, __doc__ or "")


run = partial(run_main, main)  # the command `minlm` of an installed project

if __name__ == "__main__":
    run()
