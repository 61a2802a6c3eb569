"""Memory and time of preparing and training on more and more phantoms.

    python tests/benchmarks/growth.py OUT [--counts 250 500 1000 2000]

Each size runs in a process of its own: notebook 02's arrays are written, then one epoch is trained on them. Written
are `growth.csv` (seconds, and the highest resident memory that is not the system's file cache) and `growth.png`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from fetalseg_helpers import plotting
from fetalseg_helpers.phantoms.dataset import write_phantoms

CHILD = """
import sys, time, threading
from pathlib import Path
from fetalseg_helpers import loading, preprocessing, training
folder, data, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def anonymous():  # memory of this process alone; pages of a mapped file belong to the system's cache
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

highest, done = {"": 0.0}, threading.Event()
def watch():
    while not done.wait(0.05):
        highest[phase] = max(highest.get(phase, 0.0), anonymous())
phase = ""
threading.Thread(target=watch, daemon=True).start()
stages.ensure_manifest(folder, data=data, seed=0)
for phase in ("prepare", "train"):
    started = time.perf_counter()
    if phase == "prepare":
        preprocessing.prepare(folder, 96, 64)
    else:
        settings = training.Settings(base_channels=8, depth=4, epochs=1, batch_size=8)
        training.train(training.Trainer(folder, settings), report=lambda _: 0)
    print("ROW", count, phase, time.perf_counter() - started, highest[phase], anonymous(), sep=",")
done.set()
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[250, 500, 1000, 2000])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in arguments.counts:
        data = out / f"phantom_{count}"
        if not data.exists():
            write_phantoms(data, count=count)
        command = [sys.executable, "-c", CHILD, str(out / f"run_{count}"), str(data), str(count)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in answer.splitlines():
            if line.startswith("ROW"):
                rows.append(line.split(",")[1:])
        print(*rows[-2:], sep="\n", flush=True)
    table = pd.DataFrame(rows, columns=["phantoms", "phase", "seconds", "highest_megabytes", "megabytes_after"])
    table = table.astype(dict.fromkeys(table.columns.drop("phase"), float)).astype({"phantoms": int})
    table.to_csv(out / "growth.csv", index=False)
    figure, axes = plotting.new_figure(1, 2)
    for axis, column, label in zip(axes, ("seconds", "highest_megabytes"), ("seconds", "memory, MB"), strict=True):
        for (phase, part), style in zip(table.groupby("phase"), ("solid", "dashed"), strict=True):
            axis.plot(part.phantoms, part[column], marker="o", linestyle=style, label=phase)
        axis.set(xlabel="phantoms", ylabel=label, xlim=(0, None), ylim=(0, 1.15 * table[column].max()))
    axes[0].legend(fontsize=8)
    plotting.save(figure, out / "growth.png")


if __name__ == "__main__":
    main()
