"""Tables of records for papers and pages: best in bold, standard errors, digits as these allow. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from reports.frontier import Point, Study
from suite.store import Record

ERRORS = {"ppl": "ppl_se", "kl": "kl_se", "top1": "top1_se"}
LOWER = ("ppl", "kl", "kl_p99", "nmse", "hnmse")  # what is the better the lower it is, and bold at its best
HIGHER = ("top1", "accuracy")
NAMES = {"bits": "bits", "bpw": "bits/weight", "bpw_entropy": "at entropy", "bpw_coded": "coded",
         "model_bytes": "bytes", "ppl": "perplexity", "kl": "KL (nats)", "kl_p99": "KL, 99%", "top1": "same pick",
         "nmse": "NMSE", "hnmse": "output NMSE", "bound": "bound", "accuracy": "accuracy", "seeds": "seeds",
         "cache_bytes": "cache bytes", "tokens_per_second": "tokens/s", "seconds": "seconds",
         "peak_mib": "peak MiB"}  # fmt: skip
COLUMNS = ("bits", "bpw", "ppl", "kl", "top1", "nmse", "hnmse")
_MEASURED = {f.name for f in fields(Record)} & set(NAMES)
_DIGITS = 4
_LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                                                           "\\": r"\textbackslash{}"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table: a mean with its standard error, None where there is none; whether nothing is better."""

    mean: float
    error: float | None
    best: bool = False

    def text(self, between: str) -> str:
        """Digits down to the second one of the error, "6.892 ± 0.013"; four significant ones where there is none.

        >>> Entry(6.89188, 0.01316).text(" ± "), Entry(0.0123456, None).text("")
        ('6.892 ± 0.013', '0.01235')
        """
        if not math.isfinite(self.mean):
            return "–"
        if not self.error or not math.isfinite(self.error):
            return f"{self.mean:.0f}" if self.mean == round(self.mean) else f"{self.mean:.{_DIGITS}g}"
        places = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.mean:.{places}f}{between}{self.error:.{places}f}"


def entries(points: Sequence[Point], columns: Sequence[str], *, best_per_bits: bool) -> list[list[Entry]]:
    """A row of entries for each point; the best of a column is so among all points, or among those of a width.

    Raises `ValueError` for a column that there is not.
    """
    unknown = [name for name in columns if name not in NAMES]
    if unknown:
        raise ValueError(f"column {unknown[0]!r}: there are {', '.join(NAMES)}")
    table = [[_entry(point, name) for name in columns] for point in points]
    for j, name in enumerate(columns):
        if name not in LOWER + HIGHER:
            continue
        sign = 1 if name in LOWER else -1
        for bits in {point.bits for point in points} if best_per_bits else {None}:
            of_width = [i for i, point in enumerate(points) if not best_per_bits or point.bits == bits]
            known = [i for i in of_width if math.isfinite(table[i][j].mean)]
            least = min((sign * table[i][j].mean for i in known), default=math.nan)
            for i in known if len(known) > 1 else ():
                mean, error = table[i][j].mean, table[i][j].error
                table[i][j] = Entry(mean, error, sign * mean == least)
    return table


def _entry(point: Point, name: str) -> Entry:
    if name == "seeds":
        return Entry(len(point.records), None)
    mean = point.mean(name)
    if name == "bits" or name not in _MEASURED:
        return Entry(mean, None)
    error = point.error(name, ERRORS.get(name))
    return Entry(mean, error if math.isfinite(error) and error > 0 else None)


def markdown(study: Study, points: Sequence[Point], columns: Sequence[str], *, best_per_bits: bool = False) -> str:
    """A table of GitHub's Markdown, with a line below it that says of what and how it was made."""
    found = entries(points, columns, best_per_bits=best_per_bits)
    rows = [[point.method, *(_marked(entry, "**", "**", " ± ") for entry in row)]
            for point, row in zip(points, found, strict=True)]  # fmt: skip
    header = ["method", *(NAMES[name] for name in columns)]
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _origin(study, points)]) + "\n"


def latex(study: Study, points: Sequence[Point], columns: Sequence[str], *, best_per_bits: bool = False) -> str:
    """A `tabular` with booktabs' rules, and a comment that says of what and how it was made."""
    found = entries(points, columns, best_per_bits=best_per_bits)
    rows = [[point.method.translate(_LATEX), *(_marked(entry, r"\textbf{", "}", r" $\pm$ ") for entry in row)]
            for point, row in zip(points, found, strict=True)]  # fmt: skip
    header = ["method", *(NAMES[name].translate(_LATEX) for name in columns)]
    body = [" & ".join(row).replace("–", "--") + r" \\" for row in rows]
    lines = [f"% {_origin(study, points)}", rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule",
             " & ".join(header) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _marked(entry: Entry, before: str, after: str, between: str) -> str:
    text = entry.text(between)
    return f"{before}{text}{after}" if entry.best else text


def _origin(study: Study, points: Sequence[Point]) -> str:
    """Of which model, by which versions and commands, in one line."""
    records = [record for point in points for record in point.records]
    said = [f"{study.model}, SHA-256 {study.model_sha256[:12]}, perplexity unquantized {study.ppl_base:.6g}"
            if study.ppl_base is not None else f"{study.model}, SHA-256 {study.model_sha256[:12]}"]  # fmt: skip
    for word, name in (("code", "code"), ("on", "env"), ("by", "command")):
        said.append(f"{word} {', '.join(dict.fromkeys(str(getattr(record, name)) for record in records))}")
    return "; ".join(said) + "."
