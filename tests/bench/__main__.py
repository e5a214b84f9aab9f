"""Measure everything and leave a results file: ``make bench``, or ``PYTHONPATH=tests python -m bench [part ...]``."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from bench.evaluations import default_stop, evaluations, uneven_batch
from bench.frames import frames, video_speed
from bench.inference import compiled, inference
from bench.memory import large_pictures, same_gradients, training_memory
from bench.setting import Row
from bench.speed import training_speed
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import load_results, published, save_results

PARTS: dict[str, Callable[[], list[Row]]] = {
    "inference": inference,
    "compiled": compiled,
    "evaluations": evaluations,
    "default stop": default_stop,
    "batch": uneven_batch,
    "training memory": training_memory,
    "gradients": same_gradients,
    "large pictures": large_pictures,
    "frames": frames,
    "video": video_speed,
    "training speed": training_speed,
}


def line(row: Row) -> str:
    """A row as it is printed."""
    target = "" if row.at_least is None else f"at least {row.at_least:g}"
    target = target if row.at_most is None else f"at most {row.at_most:g}"
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    return f"  {row.quantity:<78} {row.value:>10.4g} {row.unit:<8} {target:<14} {verdict}"


def main() -> None:
    """Run the parts asked for, all by default; the file keeps what it holds of the others."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--out", type=Path, default=published("bench"))
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    results = load_results(arguments.out) if arguments.out.exists() else {"parts": {}}
    for name in arguments.parts or PARTS:
        print(name, flush=True)
        rows = PARTS[name]()
        for row in rows:
            print(line(row), flush=True)
        entry = {
            "provenance": provenance(Path(__file__).parent),
            "rows": [asdict(row) | {"met": row.met} for row in rows],
        }
        results["parts"][name] = entry
        save_results(results, arguments.out)
    print(f"Wrote {arguments.out}.")


if __name__ == "__main__":
    main()
