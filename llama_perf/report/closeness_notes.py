"""What a report says of closeness below its table: gains, and what is not judged."""

from collections import Counter
from collections.abc import Iterator

from llama_perf.results.closer import closer
from llama_perf.results.run import Report
from llama_perf.words import counted


def closeness_notes(report: Report) -> Iterator[str]:
    """A line for each row that came closer, and one for each reason not to judge."""
    for comparison in report.comparisons:
        for metric, change in closer(comparison.changes)[:1]:
            then, now = map(metric.shown, (change.baseline, change.current))
            yield (
                f"closer: {comparison.id}: {metric.title} {then} -> {now}"
                f" ({metric.shown_change(change.change)}); record its baseline anew to"
                " keep that"
            )
    reasons = Counter(
        comparison.unjudged_closeness
        for comparison in report.comparisons
        if comparison.unjudged_closeness is not None
    )
    for reason, count in reasons.items():
        yield f"closeness of {counted(count, 'row')} is not judged: {reason}"
