"""The tables of README.md and docs/measured.md, made from the committed results files in reports/published."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from claims import Results, claim_rows

from deqflow.data.writing import write_whole
from deqflow.evidence.results import load_results, published

Rows = list[list[str]]
Load = Callable[[str], Results]  # a results file, by its name


def markdown(head: list[str], rows: Rows) -> str:
    """A markdown table. Columns of numbers are aligned to the right."""
    numbers = [all(row[i][:1].isdigit() for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def estimators(results: Results) -> str:
    """Every estimator: its parameters, the source of published weights, and how loading was checked."""
    rows = []
    for row in sorted(results["rows"], key=lambda row: (row["model"].split()[0], row["parameters"])):
        checked = {"names": "names and shapes", "ours": "tests"}.get(row["checked"])
        checked = checked or f"outputs, within {row['largest_difference_px']:.0e} px"
        rows.append([row["name"], row["model"], f"{row['parameters'] / 1e6:.2f} M", row["source"], checked])
    return markdown(["weights", "model", "parameters", "from", "loading checked by"], rows)


def corrections(results: Results) -> str:
    """Error and residual after 12 and 96 evaluations by number of corrections: mean and spread over seeds."""
    return _curves(results, "corrections")


def gradients(results: Results) -> str:
    """The same by gradient mode, with the seconds of the training."""
    seconds: dict[str, list[float]] = {}
    for run in results["runs"]:
        seconds.setdefault(run["variant"], []).append(run["seconds"])
    return _curves(results, "gradient", {name: f"{np.mean(values):.0f} s" for name, values in seconds.items()})


def video(results: Results) -> str:
    """Fixed-point reuse: evaluations a pair, error and flicker of each policy, for a loose and a tight tolerance."""
    rows = {(row["clip"], row["atol_px"], row["policy"]): row for row in results["rows"]}
    tolerances = sorted({atol for _, atol, _ in rows}, reverse=True)
    policies = list(dict.fromkeys(policy for *_, policy in rows))
    lines = []
    for clip in dict.fromkeys(clip for clip, *_ in rows):
        for atol in dict.fromkeys([tolerances[0], 0.1 if 0.1 in tolerances else tolerances[-1]]):
            found = [rows[clip, atol, policy] for policy in policies]
            line = [f"{clip}, to {atol:g} px"]
            for quantity, unit in (("evaluations", ""), ("error_px", " px"), ("flicker_px", " px")):
                known = all(quantity in row for row in found)
                line.append(" / ".join(f"{row[quantity]:.2f}" for row in found) + unit if known else "not known")
            lines.append(line)
    names = " / ".join(policies)
    return markdown(["clip", f"evaluations: {names}", "error", "flicker"], lines)


def _curves(results: Results, what: str, extra: dict[str, str] | None = None) -> str:
    runs = [run for run in results["runs"] if "curve" in run]
    at = [k for k in (12, 96) if k in runs[0]["curve"]["evals"]]
    head = [what, *(["training"] if extra else []), *(f"error at {k}" for k in at), *(f"residual at {k}" for k in at)]
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        row = [name, *([extra[name]] if extra else [])]
        for quantity, digits in (("error_px", 2), ("residual_px", 3)):
            for k in at:
                values = [r["curve"][quantity][r["curve"]["evals"].index(k)] for r in runs if r["variant"] == name]
                row.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f} px")
        rows.append(row)
    return markdown(head, rows)


def bench(results: Results) -> str:
    """The goals for time and memory, the measured values, and whether each goal was reached."""
    rows = []
    for row in (row for part in results["parts"].values() for row in part["rows"]):
        bounds = (("at least", row["at_least"]), ("at most", row["at_most"]))
        for words, bound in ((words, bound) for words, bound in bounds if bound is not None):
            unit = f" {row['unit']}" if row["unit"] else ""
            reached = "yes" if row["met"] else "no"
            rows.append([row["quantity"], f"{words} {bound:g}{unit}", f"{row['value']:.3g}{unit}", reached])
    return markdown(["what", "to reach", "measured", "reached"], rows)


def bench_profile(results: Results) -> str:
    """Where the time of an inference, of a film and of a training step goes: what was measured without a goal."""
    rows = []
    for part in ("inference", "compiled", "video", "training speed"):
        for row in results["parts"].get(part, {"rows": []})["rows"]:
            if row["at_least"] is None and row["at_most"] is None:
                rows.append([row["quantity"], f"{row['value']:.3g} {row['unit']}".strip()])
    return markdown(["what", "measured"], rows)


def accuracy(results: Results) -> str:
    """End-point error on each set: models after 12 and 96 evaluations and with early stop, DIS, and zero flow."""
    shown = _shown(results)
    models = results["models"]
    head = ["set", "pairs", "zero flow", "DIS"]
    for name, model in models.items():
        head += [*(f"{name} at {k}" for k in shown), *([] if model["recurrent"] else ["stopped"])]
    rows = []
    for title, measured in results["sets"].items():
        methods = measured["methods"]
        row = [title, str(measured["pairs"]), *(_error(methods[method]) for method in ("zero flow", "DIS"))]
        for name, model in models.items():
            row += [_error(methods[name]["at"][k]) for k in shown]
            if not model["recurrent"]:
                stopped = methods[name]["stopped"]
                row.append(f"{_error(stopped)} after {stopped['evaluations']:.0f}")
        rows.append(row)
    return markdown(head, rows)


def accuracy_by_evaluations(results: Results) -> str:
    """Error of each model after each number of evaluations, and its milliseconds, beside DIS."""
    evals = [str(k) for k in results["config"]["evals"]]
    rows = []
    for title, measured in results["sets"].items():
        dis = measured["methods"]["DIS"]
        for name in results["models"]:
            at = measured["methods"][name]["at"]
            first, last = at[evals[0]]["ms"], at[evals[-1]]["ms"]
            each = (last - first) / max(int(evals[-1]) - int(evals[0]), 1)
            row = [f"{title} (DIS: {_error(dis)} in {dis['ms']:.0f} ms)", name, *(_error(at[k]) for k in evals)]
            rows.append([*row, f"{first:.0f} + {each:.1f}"])
    return markdown(["set", "model", *evals, f"ms: for {evals[0]}, each further"], rows)


def accuracy_within(results: Results) -> str:
    """Share of pixels within 1, 3 and 5 px on each set: models after 12 and 96 evaluations, DIS, and zero flow."""
    shown = _shown(results)
    head = ["set", "zero flow", "DIS", *(f"{name} at {k}" for name in results["models"] for k in shown)]
    rows = []
    for title, measured in results["sets"].items():
        methods = measured["methods"]
        figures = [methods["zero flow"], methods["DIS"]]
        figures += [methods[name]["at"][k] for name in results["models"] for k in shown]
        rows.append([title, *(_within(each) for each in figures)])
    return markdown(head, rows)


def _shown(results: Results) -> tuple[str, str]:
    """The two numbers of evaluations that tables show: 12, and 96 or the largest, for the claim of convergence."""
    counts = [str(k) for k in results["config"]["evals"]]
    return "12", "96" if "96" in counts else counts[-1]


def _error(figures: Results) -> str:
    return "not known" if figures["error_px"] is None else f"{figures['error_px']:.2f}"


def _within(figures: Results) -> str:
    if "within" not in figures:
        return "not measured"  # by results files that are older than these shares
    if figures["error_px"] is None:
        return "not known"
    return " / ".join(f"{100 * share:.0f}" for share in figures["within"].values()) + " %"


def in_short(results: Results) -> str:
    """Accuracy and speed of the first model beside DIS, in a sentence."""
    name, model = next(iter(results["models"].items()))
    pairs = [
        (methods[name]["stopped"], methods["DIS"])
        for methods in (figures["methods"] for figures in results["sets"].values())
        if methods["DIS"]["error_px"] is not None
    ]
    smaller = sum(ours["error_px"] < dis["error_px"] for ours, dis in pairs)
    error, time = (float(np.exp(np.mean([np.log(a[k] / b[k]) for a, b in pairs]))) for k in ("error_px", "ms"))
    return (
        f"`{name}` ({model['parameters'] / 1e6:.1f} M parameters) beside DIS, a fast classical method, on {len(pairs)} "
        f"sets: a smaller error on {smaller} of them, {error:.2f} times the error in the mean, at {time:.0f} times the "
        f"time on a {results['config']['device'].upper()}."
    )


def confidence(results: Results) -> str:
    """Calibration and sparsification of the confidence on each set, beside the forward-backward error alone."""
    rows = []
    for row in results["rows"]:
        ours, alone = row["confidence"], row["consistency"]
        errors = (f"{100 * part['expected_calibration_error']:.1f}" for part in (ours, alone))
        areas = (f"{part['ause']:.3f}" for part in (ours, alone, row["chance"]))
        shares = (f"{100 * share:.0f} %" for share in (ours["right"], ours["confidence"]))
        found = row["occlusion"]
        hidden = (
            " / ".join(f"{100 * found[k]:.0f}" for k in ("share", "precision", "recall")) + " %"
            if found
            else "not known"
        )
        line = [row["set"], str(row["pairs"]), *shares, f"{' / '.join(errors)} %", " / ".join(areas), hidden]
        rows.append(line)
    head = ["set", "pairs", "right", "mean confidence", "calibration error", "AUSE, and of a random order"]
    head.append("occluded: share / precision / recall")
    return markdown(head, rows)


def attraction(results: Results) -> str:
    """Whether the fixed points of the models attract: median pair, and what nine of ten pairs do not exceed."""
    quantities = {
        "random_apart_px": "ends of random starts, apart from the own start's (px)",
        "stale_apart_px": "of the last pair's end (px)",
        "truth_apart_px": "of the disturbed true flow (px)",
        "white_after_5_px": "left of 0.8 px of white noise after 5 evaluations (px)",
        "white_after_20_px": "after 20 (px)",
        "smooth_after_5_px": "left of 0.8 px of smooth noise after 5 (px)",
        "smooth_after_20_px": "after 20 (px)",
        "spectral_radius": "spectral radius at the end",
        "picard_evaluations": "evaluations to 0.01 px, 100 allowed: Picard",
        "anderson_evaluations": "Anderson",
        "broyden_evaluations": "Broyden",
    }
    rows = []
    for name, words in quantities.items():
        found = [model["summary"][name] for model in results["models"].values()]
        rows.append([words, *(f"{one['median']:.3g}; {one['nine_of_ten']:.3g}" for one in found)])
    return markdown(["median; nine of ten at most", *results["models"]], rows)


def ablation(results: Results) -> str:
    """What each setting of the training buys: means over seeds, beside the model that all runs begin with."""
    seeds = len({run["seed"] for run in results["runs"]})
    by_name = {"before training": [results["start"]]}
    for run in results["runs"]:
        by_name.setdefault(run["variant"], []).append(run)
    noises = [f"{kind}_after_{evals}_px" for kind, evals in (("white", 5), ("smooth", 5), ("smooth", 20))]
    rows = []
    for name, runs in by_name.items():
        errors = [f"{np.mean([run['error_px'][k] for run in runs]):.3f}" for k in ("12", "96")]
        ends = [[run["attraction"][quantity]["median"] for run in runs] for quantity in (*noises, "spectral_radius")]
        apart = np.mean([run["attraction"]["random_apart_px"]["median"] for run in runs])
        rows.append([name, *errors, *(f"{np.mean(end):.3f}" for end in ends), f"{apart:.1g}"])
    head = ["error at 12 (px)", "at 96", "left of white noise after 5 (px)", "of smooth noise", "after 20"]
    return markdown([f"training ({seeds} seeds)", *head, "spectral radius", "ends apart (px)"], rows)


def equilibration(results: Results) -> str:
    """A recurrent model before and after it was turned into an equilibrium model: pairs, then videos."""
    rows = []
    for name, found in results["sets"].items():
        for label in ("before", "after"):
            one = found[label]
            ratio = one["errors"]["96"] / one["errors"]["12"]
            errors = " / ".join(f"{one['errors'][k]:.3f}" for k in ("12", "24", "96"))
            reached = f"{one['reached']:.0%}, {one['evaluations']:.0f}"
            title, moves = f"{name} ({found['pairs']})", f"{one['movement']:.2g}"
            rows.append([title, label, errors, f"{ratio:.3f}", moves, reached])
    head = ["set (pairs)", "", "error at 12 / 24 / 96 (px)", "96 over 12", "movement at 96 (px)"]
    pairs = markdown([*head, f"converged to {results['tolerance_px']:g} px, evaluations"], rows)
    rows = []
    for name, found in results["video"].items():
        shares = [found[k]["warp"]["evaluations"] / found[k]["reset"]["evaluations"] for k in ("before", "after")]
        rows.append([name, *(f"{share:.0%}" for share in shares)])
    head = [f"warm starts: share of the evaluations to {results['warm_tolerance_px']:g} px", "before", "after"]
    return f"{pairs}\n\n{markdown(head, rows)}"


def warping(results: Results) -> str:
    """Correlation at 1/8 of the image beside warped features at 1/4: means over seeds, with the spread of the error."""
    rows = []
    for size in dict.fromkeys(run["size"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["size"] == size]
        row = [size]
        for region in ("all", "edges", "small motion"):
            errors = [run["error_px"][region]["12"] for run in runs]
            row.append(f"{np.mean(errors):.2f} ± {np.std(errors):.2f}")
        costs = [np.mean([run[name] for run in runs]) for name in ("step_kept_mib", "seconds", "peak_mib")]
        rows.append([*row, f"{costs[0]:.0f}", f"{costs[1]:.1f}", f"{costs[2]:.0f}"])
    head = ["size", "error at 12 (px)", "near edges", "small motion"]
    return markdown([*head, "training: kept for backward (MiB)", "a frame (s)", "its peak (MiB)"], rows)


def claims(load: Load) -> str:
    """The paper's claims, and the measurements of this project."""
    return markdown(["claim", "holds here", "measured", "notebook"], claim_rows(load))


def _of(file: str, make: Callable[[Results], str]) -> Callable[[Load], str]:
    """The table that a function makes from one results file."""
    return lambda load: make(load(file))


PAGES = ("README.md", "docs/measured.md")  # the pages with tables
TABLES: dict[str, Callable[[Load], str]] = {
    "claims": claims,
    "estimators": _of("estimators", estimators),
    "corrections": _of("corrections", corrections),
    "gradients": _of("gradients", gradients),
    "confidence": _of("confidence", confidence),
    "video": _of("video", video),
    "bench": _of("bench", bench),
    "bench-profile": _of("bench", bench_profile),
    "bench-gpu": _of("bench-gpu", bench),
    "attraction": _of("attraction", attraction),
    "ablation": _of("ablation", ablation),
    "equilibration": _of("equilibration", equilibration),
    "warping": _of("warping", warping),
    "in-short": _of("accuracy", in_short),
    "accuracy": _of("accuracy", accuracy),
    "accuracy-by-evaluations": _of("accuracy", accuracy_by_evaluations),
    "accuracy-within": _of("accuracy", accuracy_within),
    "accuracy-at-two-scales": _of("accuracy-at-two-scales", accuracy),
}


def fill(text: str) -> str:
    """Return a markdown text in which each table between two marks is made again.

    Raises:
        ValueError: a mark has the name of no table.
        FileNotFoundError: a table's results file is missing.
    """

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"No table {name!r}: expected one of {', '.join(TABLES)}.")
        made = TABLES[name](lambda file: load_results(published(file)))
        return f"<!-- table: {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def update(path: str | Path) -> bool:
    """Fill in the tables of a file; return whether the file changed."""
    path = Path(path)
    old = path.read_text()
    new = fill(old)
    if new != old:
        write_whole(path, new)
    return new != old


def main(files: list[str]) -> None:
    """Fill in the tables of these markdown files, or of :data:`PAGES` if none is given."""
    root = Path(__file__).parents[1]
    for file in files or [str(root / page) for page in PAGES]:
        print(f"{file}: {'changed' if update(file) else 'unchanged'}.")


if __name__ == "__main__":
    main(sys.argv[1:])
