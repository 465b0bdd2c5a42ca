"""report.html: one page with what a run's folder holds, complete in itself; it asks no other file or server.

Figures stand beside their chance level: where a dictionary of result.json has a key "chance", its value is either
such a figure itself or a dictionary of the same keys as the figures around it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from minlm.training.checkpoint import replace_text
from minlm.training.config import files_beside_weights, load_config, save_config
from minlm.training.distributed import rank

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #d8dde3; --paper: #fff; --shade: #f5f7f9;
  --curve: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #363d46; --paper: #14171a;
  --shade: #1d2126; --curve: #56b4e9; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } p { color: var(--soft); margin: .2rem 0 .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .3rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; } td.number, th.number { text-align: right; }
td small { color: var(--soft); white-space: nowrap; display: block; }
figure { margin: 1.2rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 13px; }
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


def begin_files(run: Path, config: Any, tokenizer: Any, resume: bool) -> None:
    """Write config and vocabulary of a new run; of a run that is continued, only its limits can have changed."""
    if resume:
        save_config(config, run / "config.json")
    else:
        files_beside_weights(config, tokenizer)(run)
    (run / "report.html").unlink(missing_ok=True)  # written last: where it is, the run is finished


def finished_result(run: Path, config: Any) -> dict:
    """The result of a run that was trained to its end with this very config, which is said; {} otherwise."""
    written = all((run / name).exists() for name in ("result.json", "report.html"))
    if not written or load_config(type(config), run / "config.json") != config:
        return {}
    if rank() == 0:
        print(f"{run} is already finished: to train it longer, add --steps, --epochs or --minutes")
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def write_report(run: Path) -> Path:
    """The page of a run, from result.json, the pictures, metrics.jsonl, sample.txt and config.json -> its path.

    What a run does not have yet is left out, and the page says that figures or pictures are missing.
    Raises ValueError where the folder has no config.json, or where a file of it is not JSON.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise ValueError(f"no run at {str(run)!r}: a run's folder has a config.json")
    config, result = read_object(run / "config.json"), read_object(run / "result.json")
    pictures = sorted(run.glob("*.png"), key=lambda path: (path.stem != "loss", path.stem))
    parts = ["<h2>Figures</h2>", as_they_fit(figures(result))]
    if not result:
        parts[1] = "<p>No result.json: the run has not come to its end.</p>"
    if not (run / "loss.png").is_file():
        parts += ["<h2>Loss</h2>", loss_curve(run / "metrics.jsonl")]
    parts.append("<h2>Pictures</h2>")
    parts += [figure(path) for path in pictures] or ["<p>No pictures in the run's folder.</p>"]
    if (run / "sample.txt").is_file():
        text = (run / "sample.txt").read_text(encoding="utf-8", errors="replace")
        parts += ["<h2>Sample</h2>", f"<pre>{escape(text)}</pre>"]
    parts += ["<h2>Config</h2>", as_they_fit(options(config))]
    page = PAGE.format(title=escape(run.resolve().name), style=STYLE, body="\n".join(parts))
    replace_text(run / "report.html", page)
    return run / "report.html"


def as_they_fit(sections: Sequence[str]) -> str:
    return f'<div class="side-by-side">{"".join(sections)}</div>'


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file. ValueError for anything else."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}): it is damaged; remove it") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{str(path)!r} holds a {type(values).__name__}, not an object of figures: remove it"
        )
    return values


def words(name: str) -> str:
    """A name of the code for people: "image_to_text" -> "image to text"."""
    return escape(name.replace("_", " "))


def shown(value: Any) -> str:
    """A value as HTML; numbers are rounded for the eye and whole in <data>."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return escape("–" if value is None or value == "" else str(value))
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    return f'<data value="{value!r}">{value:,}</data>' if isinstance(value, int) else number(value)


def number(value: float) -> str:
    rounded = f"{value:,.1f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
    return f'<data value="{value!r}">{rounded}</data>'


def cell(value: Any, chance: Any = None) -> str:
    """A table's cell: the value, and under it its chance level in small where it has one."""
    beside = "" if chance is None else f"<small>chance {shown(chance)}</small>"
    kind = ' class="number"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
    return f"<td{kind}>{shown(value)}{beside}</td>"


def figures(node: Mapping[str, Any], chance: Mapping[str, Any] | None = None, title: str = "") -> list[str]:
    """The figures of an object as sections: the single ones, lists, then the objects in it.

    Objects of the same single figures become the rows of one table. chance: levels known from further out.
    """
    node, chance = with_levels(node, chance or {})
    single = {key: value for key, value in node.items() if kind_of(value) == "single"}
    lists = {key: value for key, value in node.items() if kind_of(value) == "list"}
    parts = []
    if single:
        rows = [(key, [cell(value, chance.get(key))]) for key, value in single.items()]
        parts.append(section(title, rows))
    for key, value in lists.items():
        rows = value if value and all(isinstance(row, list) for row in value) else [value]
        parts.append(section(joined(title, key), [("", [cell(item) for item in row]) for row in rows]))
    tables: dict[Any, dict[str, Mapping]] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            tables.setdefault(columns_of(value, chance.get(key)) or key, {})[key] = value
    for columns, objects in tables.items():
        if len(objects) > 1:
            parts.append(side_by_side(columns, objects, chance, title))
        else:
            for key, value in objects.items():
                parts += figures(value, chance.get(key), joined(title, key))
    return parts


def with_levels(node: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, the chance levels that stand beside them); a level that fits no figure is a figure itself."""
    node, beside = dict(node), {}
    own = node.pop("chance") if isinstance(node.get("chance"), Mapping) else {}
    for key, level in [*own.items(), *outer.items()]:
        kinds = {kind_of(level), kind_of(node[key])} if key in node and key not in beside else set()
        if kinds in ({"single"}, {"object"}):
            beside[key] = level
        else:
            name = f"chance {key}"
            while name in node:
                name = f"chance {name}"
            node[name] = level
    return node, beside


def kind_of(value: Any) -> str:
    return "object" if isinstance(value, Mapping) else "list" if isinstance(value, list) else "single"


def columns_of(values: Mapping[str, Any], chance: Mapping | None) -> tuple[str, ...]:
    """The columns of a row made of these figures; () where they are no row: nested, or chance knows more."""
    levels = chance or {}
    flat = all(kind_of(value) == "single" for value in [*values.values(), *levels.values()])
    return tuple(values) if flat and levels.keys() <= values.keys() else ()


def side_by_side(columns: Sequence[str], objects: Mapping[str, Mapping], chance: Mapping, title: str) -> str:
    """A row an object, a column a figure, each above chance[object][figure]."""
    rows = []
    for key, values in objects.items():
        beside = chance.get(key, {})
        rows.append((key, [cell(values[column], beside.get(column)) for column in columns]))
    return section(title, rows, columns)


def joined(title: str, key: str) -> str:
    return f"{title}: {key}" if title else key


def section(title: str, rows: Sequence[tuple[str, Sequence[str]]], columns: Sequence[str] = ()) -> str:
    """A heading and a table: rows of (name, cells), under the names of the columns where there are any."""
    head = "".join(f'<th scope="col" class="number">{words(column)}</th>' for column in columns)
    head = f"<thead><tr><td></td>{head}</tr></thead>" if columns else ""
    lines = []
    for name, cells in rows:
        first = f'<th scope="row">{words(name)}</th>' if name else ""
        lines.append(f"<tr>{first}{''.join(cells)}</tr>")
    table = f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'
    return f"<section>{f'<h3>{words(title)}</h3>' if title else ''}{table}</section>"


def figure(path: Path) -> str:
    """A picture with a caption made from its name; its bytes are in the page."""
    name, content = words(path.stem).capitalize(), base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{name}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"


def options(config: Mapping[str, Any], title: str = "") -> list[str]:
    """A section of the single options, then those of each part of the config."""
    rows = [(key, [cell(value)]) for key, value in config.items() if not isinstance(value, Mapping)]
    parts = [section(title, rows)] if rows else []
    for key, value in config.items():
        if isinstance(value, Mapping):
            parts += options(value, f"{title}.{key}" if title else key)
    return parts


def loss_curve(path: Path) -> str:
    """The losses of metrics.jsonl against the steps as a drawing in the page; a sentence where there are none."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} has a line that is not JSON ({error}): remove the line"
            ) from None
    points = [(row["step"], row["loss"]) for row in rows if abs(row.get("loss", float("nan"))) < float("inf")]
    if not points:
        return "<p>No loss has been logged.</p>"
    width, height, left, bottom = 720, 260, 60, 30
    steps, losses = zip(*points, strict=True)
    low, high = min(losses), max(losses)

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 10) * (step - steps[0]) / max(steps[-1] - steps[0], 1)
        y = 12 + (height - bottom - 12) * (high - loss) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    marks = [
        f'<text x="{left - 6}" y="18" text-anchor="end">{high:.3g}</text>',
        f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{left}" y="{height - 8}">step {steps[0]:,}</text>',
        f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">step {steps[-1]:,}</text>',
    ]
    drawn = f'<polyline points="{line}" fill="none" stroke="var(--curve)" stroke-width="1.5"/>'
    caption = f"Training loss (nats) of {len(points):,} steps, last {shown(losses[-1])}"
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss">{"".join(marks)}{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
