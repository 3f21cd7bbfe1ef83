"""Gather the results of the challenge demo's steps: `summary.json`, and the table at the end of the run."""

import json
import sys
from pathlib import Path


def main(out: Path) -> None:
    def result(step: str) -> dict:
        return json.loads((out / f"{step}.json").read_text())

    seconds = {}
    for line in (out / "steps.txt").read_text().splitlines():
        name, end, start = line.split()
        seconds[name] = round(float(end) - float(start), 1)
    scores, submission = result("evaluate"), Path(result("submit")["submission"])
    summary = {"seconds": seconds, "macro_f1": scores["macro_f1"], "rows": scores["rows"]}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    rows = [(name, f"{s:.1f} s") for name, s in seconds.items()]
    rows += [("total", f"{sum(seconds.values()):.1f} s")]
    rows += [(f"F1 {name}", f"{values['f1']:.3f}") for name, values in scores["classes"].items()]
    rows += [
        ("macro F1", f"{scores['macro_f1']:.3f} on {scores['rows']} sequences of people not seen in training"),
        ("UAR", f"{scores['uar']:.3f}"),
        ("summary", str(out / "summary.json")),
        ("submission", str(submission) + ("" if submission.exists() else " (missing)")),
    ]
    for name, value in rows:
        print(f"{name:16}{value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
