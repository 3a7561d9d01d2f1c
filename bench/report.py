"""What a claim's program returns, and how it is shown."""

import json
import statistics
from dataclasses import dataclass, field


@dataclass
class Result:
    claim: str
    unit: str
    target: float
    reference: str  # what it is compared with
    runs: list  # of dicts: the raw figures of each run
    ratios: list  # the figure of each run; the claim's is their median
    details: list = field(default_factory=list)  # lines for people
    at_least: bool = False  # the target is a lower bound

    @property
    def figure(self):
        return statistics.median(self.ratios)

    @property
    def holds(self):
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    @property
    def bound(self):
        return f"{'≥' if self.at_least else '≤'} {self.with_unit(f'{self.target:g}')}"

    def with_unit(self, text):
        return f"{text}{'' if self.unit in ('×', '%') else ' '}{self.unit}"

    def lines(self):
        mark = "holds" if self.holds else "MISSED"
        yield f"{self.claim}"
        yield (
            f"    {self.with_unit(f'{self.figure:.2f}')}, target {self.bound}: {mark}; {len(self.ratios)} runs, "
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
            "at_least": self.at_least,
            "holds": self.holds,
            "reference": self.reference,
            "runs": self.runs,
        }


def ratio_result(claim, target, reference, runs, subject, base, details=(), at_least=False):
    """A claim about runs[…][subject] over runs[…][base]."""
    return Result(
        claim=claim,
        unit="×",
        target=target,
        reference=reference,
        runs=runs,
        ratios=[run[subject] / run[base] for run in runs],
        details=[summary(runs, subject), summary(runs, base), *(summary(runs, key) for key in details)],
        at_least=at_least,
    )


def quartiles(values):
    low, high = quartile_pair(values)
    return f"{low:.2f} … {high:.2f}"


def quartile_pair(values):
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def summary(runs, key):
    values = [run[key] for run in runs]
    return (
        f"{key.replace('_', ' '):32} median {statistics.median(values):9.2f}  ({min(values):.2f} … {max(values):.2f})"
    )


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([result.json() for result in results], indent=1, ensure_ascii=False) + "\n")


def write_text(path, text):
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
