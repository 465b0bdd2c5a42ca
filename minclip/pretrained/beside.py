"""What lies beside a CLIP's weights: its vocabulary, and how pictures are prepared."""

from pathlib import Path
from typing import Any

from minclip.data.clip_bpe import N_MERGES, ClipBPE
from minclip.data.tokenizer import Tokenizer, WordPiece, load_tokenizer
from minclip.data.transforms import TransformConfig
from minclip.pretrained import native
from minclip.pretrained.native import CONFIG_NAME
from minlm.pretrained.options import complete, expect, known, option
from minlm.pretrained.weight_files import WeightFile, read_object

TOKENIZER_JSON = "tokenizer.json"  # Hugging Face's newer folders have their vocabulary in nothing else
BERT_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def tokenizer_beside(source: WeightFile, vocabulary: str | Path | None) -> Tokenizer:
    """The tokenizer of a vocabulary file, or of the files beside the weights.

    Raises ValueError where there is none: no published CLIP file holds its vocabulary.
    """
    cleaning = option(native.model_options(source), "text_cfg", dict, source.path, {})
    expect(cleaning, {"tokenizer_mode": None, "tokenizer_kwargs": {}}, source.folder / CONFIG_NAME)
    if vocabulary is not None:
        return load_tokenizer(vocabulary)
    names = (*WordPiece.FILE_NAMES, *ClipBPE.FILE_NAMES)
    found = [source.folder / name for name in names if (source.folder / name).is_file()]
    if len(found) == 1:
        return load_tokenizer(found[0])
    if not found and (source.folder / TOKENIZER_JSON).is_file():
        return read_tokenizer_json(source.folder / TOKENIZER_JSON)
    raise ValueError(
        f"{len(found)} vocabularies beside {source.path}: put one of {', '.join(names)}, {TOKENIZER_JSON} there, or "
        "name the file (--vocabulary; in Python vocabulary=). Without one, minclip.pretrained.load_clip_model, "
        "load_image_tower and load_text_tower give the model or a tower alone"
    )


def read_tokenizer_json(path: Path) -> Tokenizer:
    """CLIP's BPE or BERT's WordPiece from a tokenizer.json; ValueError for anything else."""
    saved = read_object(path)
    model, normalizer = saved.get("model") or {}, saved.get("normalizer") or {}
    try:
        if model.get("type") == "BPE" and model["end_of_word_suffix"] == "</w>":
            pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
            return ClipBPE(pairs[:N_MERGES])
        if model.get("type") == "WordPiece" and BERT_NORMALIZER.items() <= normalizer.items():
            lower_case, strip_accents = normalizer["lowercase"], normalizer["strip_accents"]
            tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
            if list(map(model["vocab"].get, tokens)) != list(range(len(tokens))):
                raise ValueError(f"its ids are not 0 to {len(tokens) - 1}")
            if type(lower_case) is bool and strip_accents in (None, lower_case):
                return WordPiece(tokens, lower_case)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    raise ValueError(f"{path} is of another tokenizer than CLIP's BPE and BERT's WordPiece")


def transform_beside(source: WeightFile, image_size: tuple[int, int]) -> TransformConfig:
    """Colours and resampling from open_clip_config.json or Hugging Face's preprocessor; else CLIP's own.

    image_size: of the model in the file. Raises ValueError where images are prepared otherwise than by resize of the
    shorter side to that size, centre crop and normalisation.
    """
    height, width = image_size
    where = source.folder / CONFIG_NAME
    options = option(source.read_json(CONFIG_NAME), "preprocess_cfg", dict, where, {})
    if options:
        known(options, {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}, where)
        expect(options, {"resize_mode": "shortest", "mode": "RGB"}, where)
        require_size(options, "size", [height, [height, width]], image_size, where)
        return make_transform(*map(options.get, ("mean", "std", "interpolation")), where)
    options = source.read_json("preprocessor_config.json")
    if not options:
        options = option(
            source.read_json("processor_config.json"), "image_processor", dict, source.folder, {}
        )
    where = source.folder
    require_size(options, "size", [height, {"shortest_edge": height}], image_size, where)
    require_size(options, "crop_size", [height, {"height": height, "width": width}], image_size, where)
    factor = option(options, "rescale_factor", float, where, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{where} has rescale_factor={factor}: only 1/255 can be loaded")
    wanted = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
    expect(options, wanted | {"do_pad": False}, where)
    resample = option(options, "resample", int, where, 3)
    if resample not in RESAMPLE:
        raise ValueError(f"{where} resamples pictures by Pillow's method {resample}: only 2 and 3 are known")
    return make_transform(options.get("image_mean"), options.get("image_std"), RESAMPLE[resample], where)


def require_size(
    options: dict[str, Any], name: str, forms: list[Any], image_size: tuple[int, int], where: Any
) -> None:
    """ValueError where a preprocessor's size is none of the `forms` in which the model's can be written."""
    if options.get(name) not in (None, *forms):
        raise ValueError(
            f"{where} prepares images with {name}={options[name]!r}, the model takes {image_size}: only {forms[-1]} "
            f"can be loaded"
        )


def make_transform(mean: Any, std: Any, interpolation: Any, where: Any) -> TransformConfig:
    """The config of what is said; CLIP's own values for what is not. ValueError for what is impossible."""
    said = {"mean": mean, "std": std, "interpolation": interpolation}
    return complete(
        TransformConfig, {name: value for name, value in said.items() if value is not None}, {}, where
    )
