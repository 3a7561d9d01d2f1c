"""What a claim's program returns, and how it is shown."""

import json
import statistics
from dataclasses import dataclass, field


@dataclass
class Result:
    claim: str
    unit: str
    target: float  # at most
    reference: str  # what it is compared with
    runs: list  # of dicts: the raw figures of each run
    ratios: list  # the figure of each run; the claim's is their median
    details: list = field(default_factory=list)  # lines for people

    @property
    def figure(self):
        return statistics.median(self.ratios)

    @property
    def holds(self):
        return self.figure <= self.target

    def lines(self):
        mark = "holds" if self.holds else "MISSED"
        unit = self.unit if self.unit == "×" else f" {self.unit}"
        yield f"{self.claim}"
        yield (
            f"    {self.figure:.2f}{unit}, target ≤ {self.target:g}{unit}: {mark}; {len(self.ratios)} runs, "
            f"{min(self.ratios):.2f} … {max(self.ratios):.2f}, quartiles {quartiles(self.ratios)}"
        )
        yield f"    reference: {self.reference}"
        for detail in self.details:
            yield f"    {detail}"

    def json(self):
        return {
            "claim": self.claim,
            "figure": round(self.figure, 4),
            "unit": self.unit,
            "target": self.target,
            "holds": self.holds,
            "reference": self.reference,
            "runs": self.runs,
        }


def ratio_result(claim, target, reference, runs, subject, base, details=()):
    """A claim about runs[…][subject] over runs[…][base], both in ms."""
    return Result(
        claim=claim,
        unit="×",
        target=target,
        reference=reference,
        runs=runs,
        ratios=[run[subject] / run[base] for run in runs],
        details=[summary(runs, subject), summary(runs, base), *(summary(runs, key) for key in details)],
    )


def quartiles(values):
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{low:.2f} … {high:.2f}"


def summary(runs, key):
    values = [run[key] for run in runs]
    return f"{key.replace('_', ' '):32} median {statistics.median(values):9.2f}  ({min(values):.2f} … {max(values):.2f})"


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([result.json() for result in results], indent=1, ensure_ascii=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)
