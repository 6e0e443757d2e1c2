"""What a report says of closeness below its table: gains, and what is not judged."""

from collections import Counter
from collections.abc import Iterator, Sequence

from llama_perf.results.closeness import closer
from llama_perf.results.measurement import Closeness
from llama_perf.results.run import Comparison
from llama_perf.words import counted


def in_words(closeness: Closeness) -> str:
    """All figures of a closeness in one line."""
    tokens = counted(closeness.tokens, "token")
    own, twins = closeness.perplexity, closeness.twin_perplexity
    words = [
        f"{closeness.db:.1f} dB over {closeness.text} ({tokens})",
        f"divergence {closeness.kl_nats:.4f} nats",
        f"{closeness.top1_share:.1%} of the twin's top-1 tokens",
        f"perplexity {own:.2f}, the twin's {twins:.2f}",
    ]
    same, wanted = closeness.same_greedy_tokens, closeness.greedy_tokens
    if same < wanted:
        words.append(f"greedy token {same + 1} of {wanted} is the first other one")
    elif wanted:
        words.append(f"all {counted(wanted, 'greedy token')} are the twin's")
    return "; ".join(words)


def closeness_notes(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """A line for each row that came closer, and one for each reason not to judge."""
    for comparison in comparisons:
        for metric, change in closer(comparison.changes)[:1]:
            then, now = map(metric.shown, (change.baseline, change.current))
            yield (
                f"closer: {comparison.id}: {metric.title} {then} -> {now}"
                f" ({metric.shown_change(change.change)}); record its baseline anew to"
                " keep that"
            )
    reasons = Counter(
        comparison.unjudged_closeness
        for comparison in comparisons
        if comparison.unjudged_closeness is not None
    )
    for reason, count in reasons.items():
        yield f"closeness of {counted(count, 'row')} is not judged: {reason}"
