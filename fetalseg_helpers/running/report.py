"""What `verify` says of a data set: first what it is, then a line for each cause, with what helps."""

import pandas as pd

from fetalseg_helpers import loading, verification
from fetalseg_helpers.workspace import read_json, run_folder, shown


def causes(findings):
    """A row per check that found something: how often, the first three names and detail, and what `CHECKS` says."""
    checks = findings.groupby("check", sort=False)
    first = checks.image_id.agg(lambda names: list(names.unique()[:3])).rename("first")
    table = checks.agg(count=("image_id", "nunique"), detail=("detail", "first")).join(first)
    return table.join(verification.TABLE).reset_index()


def summary(files, used, findings):
    """One line: how many files were found, and what became of them; `used` is a table of pairs."""
    repaired = findings.image_id[findings.check.map(verification.TABLE.decision) == "repaired"]
    alone = len(used) and not used.examination.duplicated().any()
    whose = "each an examination of its own" if alone else f"of {used.examination.nunique()} examinations"
    kept = f"{len(used)} pairs used, {whose}, {used.image_id.isin(repaired).sum()} of them repaired"
    return f"{files} files found: {kept}; {files - 2 * len(used)} files left out or set aside"


def of_run(run_dir):
    """The same of a run folder that notebook 3, or a command, has verified, and where the reasons are."""
    path = run_folder(run_dir) / "verification.csv"
    findings = pd.read_csv(path, **loading.AS_TEXT)
    files = read_json(path.with_suffix(".json"))["files"]
    return f"{summary(files, verification.usable_pairs(run_dir), findings)}, with their reasons in {shown(path)}."


def describe(pairs, findings, measurements):
    """What a data set holds, as a dictionary of numbers and short texts."""
    usable = measurements.drop(findings.image_id[findings.severity == "error"], errors="ignore")
    negatives = findings.image_id[findings.check == "negative"]
    used = pairs[pairs.image_id.isin([*usable.index, *negatives])]
    sizes = usable["size"].value_counts()
    files, filled = int(pairs.files.map(len).sum()), int(usable.filled.sum())
    return {
        "summary": f"{summary(files, used, findings)}.",
        "files": files,
        "pairs_used": len(used),
        "examinations": int(used.examination.nunique()),
        "masks": {"filled": filled, "outlines": len(usable) - filled, "empty": len(negatives)},
        "area_range": usable.area_fraction.astype(float).agg(["min", "max"]).dropna().round(4).tolist(),
        "sizes": {f"{width} × {height}": int(count) for (width, height), count in sizes.items()},
        "values": findings.detail[findings.check == "mask_values"].value_counts().to_dict(),
    }


def lines(pairs, findings, measurements, every=False):
    """The report line by line: the summary, then causes, or with `every` each finding."""
    told = describe(pairs, findings, measurements)
    yield told["summary"]
    if told["pairs_used"]:
        if told["examinations"] == told["pairs_used"]:
            yield "no two images are known to belong together: give --examinations if some do."
        sizes = list(told["sizes"].items())
        more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        yield f"sizes: {', '.join(f'{size} ({count})' for size, count in sizes[:3])}{more}"
        yield "masks: {outlines} outlines, to be filled; {filled} filled already".format(**told["masks"])
    if told["masks"]["empty"]:
        yield "{empty} masks are empty, and kept: frames without a head".format(**told["masks"])
    if told["area_range"]:
        yield "regions: {:.1%} to {:.1%} of the frame".format(*told["area_range"])
    for values, count in list(told["values"].items())[:3]:
        yield f"values: {values} ({count} masks)"
    if every:
        for finding in findings.itertuples():
            yield f"{finding.severity:<8}{finding.check:<22}{finding.image_id}: {finding.detail}"
        return
    for cause in causes(findings).itertuples():
        yield f"{cause.severity:<8}{cause.count:>6} {cause.check}, {cause.decision}: {', '.join(cause.first)}"
        yield f"{'':15}{cause.detail}"
        yield f"{'':15}-> {cause.remedy}"
