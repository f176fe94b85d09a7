"""Methods over several tasks: mean ranks, Friedman's test, Nemenyi's critical difference."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from seven_exp.compare.contrasts import p_words
from seven_exp.compare.metrics import smaller_is_better
from seven_exp.compare.statistics import SIGNIFICANT
from seven_exp.compare.summary import Row


@dataclass(frozen=True)
class Ranks:
    """The methods of one sparsity, ranked on each task by their means.

    Attributes:
        sparsity: Target.
        tasks: (model, data set) of each task, sorted.
        ranks: Method -> its rank on each task, 1 = best; ties share their mean rank. Methods are
            sorted by mean rank.
        statistic: Friedman's chi squared, corrected for ties; None if all methods tie everywhere.
        p: Its p value, with one degree of freedom less than there are methods.
        critical: The smallest difference of two mean ranks that is significant (Nemenyi).
        left_out: Methods without a result on some task.
        partial: Methods of which seeds have no result on some task.
    """

    sparsity: float
    tasks: Sequence[tuple[str, str]]
    ranks: Mapping[str, Sequence[float]]
    statistic: float | None
    p: float | None
    critical: float
    left_out: Sequence[str] = ()
    partial: Sequence[str] = ()

    @property
    def means(self) -> dict[str, float]:
        """Method -> mean rank, best first."""
        return {method: sum(own) / len(own) for method, own in self.ranks.items()}


def rank(rows: Sequence[Row], metric: str) -> list[Ranks]:
    """Rank the methods at each sparsity that has at least three of them on two tasks.

    Only methods with a result on every task of the sparsity are ranked.
    """
    found = []
    for sparsity in sorted({row.sparsity for row in rows}):
        here = [row for row in rows if row.sparsity == sparsity]
        tasks = sorted({row.task for row in here})
        values = {(row.method, row.task): row.result.mean for row in here}
        names = sorted({row.method for row in here})
        whole = [name for name in names if all((name, task) in values for task in tasks)]
        if len(tasks) < 2 or len(whole) < 3:
            continue
        sign = 1 if smaller_is_better(metric) else -1
        costs = [[sign * values[name, task] for name in whole] for task in tasks]
        partial = sorted({row.method for row in here if row.lost} & {*whole})
        left_out = [name for name in names if name not in whole]
        found.append(friedman(sparsity, tasks, whole, costs, left_out, partial))
    return found


def friedman(
    sparsity: float,
    tasks: Sequence[tuple[str, str]],
    methods: Sequence[str],
    costs: Sequence[Sequence[float]],
    left_out: Sequence[str] = (),
    partial: Sequence[str] = (),
) -> Ranks:
    """Friedman's test and Nemenyi's critical difference (Demšar 2006, section 3.2).

    Args:
        sparsity: Of all results.
        tasks: At least 2.
        methods: At least 3.
        costs: For each task the methods' values, smaller is better.
        left_out: As in `Ranks`.
        partial: As in `Ranks`.
    """
    # Imported here: it takes long, and one task needs none of it.
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    n, k = len(tasks), len(methods)
    table = [[float(one) for one in rankdata(of_task)] for of_task in costs]
    ranks = {method: [of_task[i] for of_task in table] for i, method in enumerate(methods)}
    order = sorted(methods, key=lambda method: (sum(ranks[method]), method))
    tied = all(len(set(of_task)) == 1 for of_task in costs)
    test = None if tied else friedmanchisquare(*zip(*costs, strict=True))
    quantile = float(studentized_range.ppf(1 - SIGNIFICANT, k, math.inf)) / math.sqrt(2)
    return Ranks(
        sparsity=sparsity,
        tasks=tasks,
        ranks={method: ranks[method] for method in order},
        statistic=None if test is None else float(test.statistic),
        p=None if test is None else float(test.pvalue),
        critical=quantile * math.sqrt(k * (k + 1) / (6 * n)),
        left_out=left_out,
        partial=partial,
    )


def alike(ranks: Ranks) -> list[tuple[str, str]]:
    """The largest groups whose mean ranks lie within the critical difference: first and last."""
    means = list(ranks.means.items())
    groups: list[tuple[int, int]] = []
    for i, (_, best) in enumerate(means):
        last = max(j for j, (_, mean) in enumerate(means) if mean - best <= ranks.critical)
        if last > i and (not groups or last > groups[-1][1]):
            groups.append((i, last))
    return [(means[i][0], means[j][0]) for i, j in groups]


def sentences(ranks: Ranks, name: Callable[[str], str] = str) -> list[str]:
    """What the ranks show, in words; ``name`` says how methods are called."""
    n, k = len(ranks.tasks), len(ranks.ranks)
    if ranks.statistic is None or ranks.p is None:
        said = [f"all {k} methods tie on all {n} tasks"]
    else:
        test = f"Friedman's chi squared({k - 1}) = {ranks.statistic:.2f}, {p_words(ranks.p)}"
        shown = ranks.p < SIGNIFICANT
        verdict = "the methods differ" if shown else "no difference between the methods is shown"
        said = [f"over {n} tasks {verdict} ({test})"]
    if ranks.critical > k - 1:
        said.append(
            f"{n} tasks are too few for pairs of {k} methods: mean ranks would have to differ by "
            f"{ranks.critical:.2f}, but can't by more than {k - 1}"
        )
    else:
        said.append(f"mean ranks differ at 5% if {ranks.critical:.2f} or more apart (Nemenyi)")
    if ranks.left_out:
        said.append(
            f"not ranked, without a result on some task: {', '.join(map(name, ranks.left_out))}"
        )
    if ranks.partial:
        said.append(f"ranked by the seeds that finished: {', '.join(map(name, ranks.partial))}")
    return said
