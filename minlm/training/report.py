"""report.html: one page on a run, or on several side by side, which loads no other file.

Metrics are shown with their chance level below them: if an object in result.json has an object "chance", that holds
the levels of the metrics beside it, under the same keys.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from math import prod
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from minlm.training.checkpoint import damaged, has_checkpoint, last_checkpoint
from minlm.training.config import check_file
from minlm.training.files import read_object, replace_text
from minlm.training.log import read_metrics
from minlm.training.options import OneLineParser
from minlm.training.record import is_finished, mark_finished, read_record

FAILURES = ("failures", "confusion")  # ends of the names of images that are shown first
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #d8dde3; --paper: #fff; --shade: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #363d46; --paper: #14171a;
  --shade: #1d2126; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } p { color: var(--soft); margin: .2rem 0 .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .3rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
td small { color: var(--soft); white-space: nowrap; display: block; }
figure { margin: 1.2rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: .85rem; }
.side-by-side { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
section { margin-bottom: 1.4rem; max-width: 100%; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(run: Path) -> Path:
    """Record that a run has finished and write its page -> the page's path."""
    mark_finished(run)
    return write_page([run], run / "report.html")


def report_runs(
    arguments: list[str],
    command: Callable,
    package: str,
    draw: Callable[[Path], Any],
    compare: Callable[[Sequence[Path], Path], Any],
) -> None:
    """Run the command `report`: draw the curves of one run, or of several in one plot, and write the page.

    draw(run) writes plots of its curves into a run's folder; compare(runs, path) writes one plot of all runs.
    """
    parser = OneLineParser(prog=f"python -m {package} report", description=command.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html; of several runs, report.html in the current folder)",
    )
    given = parser.parse_args(arguments)
    runs = list(given.runs)
    for run in runs:
        check_run(run)
    out = given.out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    check_file(out, "--out")
    comparison = out.with_suffix(".png")
    if len(runs) == 1:
        draw(runs[0])
    else:
        compare(runs, comparison)
    print(write_page(runs, out, comparison if len(runs) > 1 else None))


def check_run(run: Path) -> None:
    """Raise ValueError if a folder is not that of a run."""
    if not (run / "config.json").is_file():
        raise ValueError(f"no run at {str(run)!r}: a run's folder has a config.json")


def write_page(runs: Sequence[Path], out: Path, comparison: Path | None = None) -> Path:
    """Write the page of a run, or of several with one column per run -> its path.

    It shows run.json, result.json, config.json, metrics.jsonl, sample.txt and the images of each run, and says what a
    run does not have yet. comparison: a plot of the curves of all runs, shown instead of each run's own.
    Raises ValueError if a folder has no config.json, or if one of its files is not JSON.
    """
    for run in runs:
        check_run(run)
    names = [run.resolve().name for run in runs]
    results, configs = ([list(rows_of(read(run))) for run in runs] for read in (read_result, read_options))
    logged = [last_logged(run) for run in runs]
    parts = ["<h2>Run</h2>", tables([provenance(run) for run in runs], names), "<h2>Metrics</h2>"]
    for run, name in zip(runs, names, strict=True):
        if not (run / "result.json").is_file():
            parts.append(f"<p>No result.json: {escape(name)} has not finished.</p>")
        elif not is_finished(run):
            parts.append(f"<p>{escape(name)} was continued after these metrics, or stopped early.</p>")
    both = [result + last for result, last in zip(results, logged, strict=True)]
    parts += [tables(both, names), "<h2>Images</h2>", *images(runs, comparison)]
    for run, name in zip(runs, names, strict=True):
        if (run / "sample.txt").is_file():
            text = (run / "sample.txt").read_text(encoding="utf-8", errors="replace")
            parts += [f"<h2>Sample{of(name, runs)}</h2>", f"<pre>{escape(text)}</pre>"]
    parts.append("<h2>Options</h2>" if len(runs) == 1 else "<h2>Options that differ</h2>")
    parts.append(tables(configs, names, equal=len(runs) == 1))
    page = PAGE.format(title=escape(", ".join(names)), style=STYLE, body="\n".join(parts))
    replace_text(out, page)
    return out


def read_result(run: Path) -> dict[str, Any]:
    """Return the metrics in result.json; without the file, those known before training."""
    known = read_record(run).get("known", {})
    return read_object(run / "result.json", "remove it", missing_ok=True) or known


def read_options(run: Path) -> dict[str, Any]:
    """Return the options in config.json."""
    return read_object(run / "config.json")


Row = tuple[str, Any, Any]  # dotted name, value, its chance level or None


def provenance(run: Path) -> list[Row]:
    """Return how and when a run was started, and its number of parameters, as rows of a table."""
    record = read_record(run)
    starts = record.get("starts", [])
    rows: dict[str, Any] = {"folder": str(run)}
    if starts:
        rows |= {"started": starts[0]["date"], "finished": record.get("finished", "not yet")}
        rows |= {key: value for key, value in starts[-1].items() if key != "date"}
    if len(starts) > 1:
        rows["continued"] = ", ".join(start["date"] for start in starts[1:])
    if has_checkpoint(run):
        rows["parameters"] = count_weights(last_checkpoint(run) / "model.safetensors")
    return [(key, value, None) for key, value in rows.items()]


def last_logged(run: Path) -> list[Row]:
    """Return the last value of each metric in metrics.jsonl."""
    last: dict[str, Any] = {}
    for row in read_metrics(run) if (run / "metrics.jsonl").is_file() else ():
        last |= row
    return list(rows_of(last, prefix="last logged."))


def count_weights(path: Path) -> int:
    """Count the numbers in a file of weights from its header."""
    try:
        with safe_open(path, "pt") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except Exception as error:
        raise damaged(path, str(error)) from None


def rows_of(node: Mapping[str, Any], levels: Any = None, prefix: str = "") -> Iterator[Row]:
    """Yield the single values in a nested object as rows.

    levels: chance levels from the enclosing objects, by key. Lists of lists, which are confusion matrices, are left
    out: they are plotted.
    """
    levels = levels if isinstance(levels, Mapping) else {}
    if isinstance(node.get("chance"), Mapping):
        levels = levels | node["chance"]
    for key, value in node.items():
        if isinstance(value, Mapping):
            if key != "chance":
                yield from rows_of(value, levels.get(key), f"{prefix}{key}.")
        elif not (isinstance(value, list) and any(isinstance(item, list) for item in value)):
            yield prefix + key, value, levels.get(key)


def tables(columns: Sequence[Sequence[Row]], names: Sequence[str], equal: bool = True) -> str:
    """Return HTML with one table per part of the dotted names, one row per name and one column per run.

    equal: show rows that are equal in all runs.
    """
    found = [{name: (value, chance) for name, value, chance in rows} for rows in columns]
    parts: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for rows in found for name in rows):
        cells = [rows.get(name, (None, None)) for rows in found]
        if equal or any(other != cells[0] for other in cells):
            part, _, last = name.rpartition(".")
            row = f'<tr><th scope="row">{words(last)}</th>{"".join(cell(*pair) for pair in cells)}</tr>'
            parts.setdefault(part, []).append(row)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    head = f"<thead><tr><td></td>{head}</tr></thead>" if len(names) > 1 else ""
    sections = (
        f"<section>{f'<h3>{words(part)}</h3>' if part else ''}"
        f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div></section>'
        for part, rows in parts.items()
    )
    return f'<div class="side-by-side">{"".join(sections)}</div>'


def words(name: str) -> str:
    """Replace underscores by spaces and escape: "image_to_text" -> "image to text"."""
    return escape(name.replace("_", " "))


def shown(value: Any) -> str:
    """Return a value as HTML; numbers are rounded, with the exact value in <data>."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return escape("–" if value is None or value == "" else str(value))
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    rounded = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, float) and 1000 <= abs(value) < 1e12:
        rounded = f"{value:,.1f}"
    return f'<data value="{value!r}">{rounded}</data>'


def cell(value: Any, chance: Any) -> str:
    """Return a table cell with the value and, if there is one, its chance level below."""
    beside = "" if chance is None else f"<small>chance {shown(chance)}</small>"
    return f"<td>{shown(value)}{beside}</td>"


def of(name: str, runs: Sequence[Path]) -> str:
    """Return " of NAME" if there are several runs."""
    return f" of {escape(name)}" if len(runs) > 1 else ""


def images(runs: Sequence[Path], comparison: Path | None) -> list[str]:
    """Return HTML with failures first, then the loss, then the other images; equal names side by side."""
    stems = {path.stem for run in runs for path in run.glob("*.png")}
    stems -= {"loss", comparison.stem} if comparison else set()
    ordered = sorted(stems, key=lambda stem: (not stem.endswith(FAILURES), stem != "loss", stem))
    parts = [figure(comparison, "")] if comparison else []
    for stem in ordered:
        paths = [run / f"{stem}.png" for run in runs if (run / f"{stem}.png").is_file()]
        drawn = [figure(path, of(path.parent.resolve().name, runs)) for path in paths]
        parts.append(f'<div class="side-by-side">{"".join(drawn)}</div>')
    return parts or ["<p>No images in the run's folder.</p>"]


def figure(path: Path, owner: str) -> str:
    """Return an image embedded in HTML, with its name and the description in the file."""
    try:
        with Image.open(path) as image:
            image.load()
            said = escape(image.info.get("Description", ""))
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not an image ({error}): remove it") from None
    name, content = words(path.stem).capitalize(), base64.b64encode(path.read_bytes()).decode()
    drawn = f'<img alt="{name}{owner}" src="data:image/png;base64,{content}">'
    return f"<figure>{drawn}<figcaption><b>{name}{owner}.</b> {said}</figcaption></figure>"
