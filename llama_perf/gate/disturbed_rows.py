"""What a disturbed row may be called, and which fresh processes count.

Stored figures are of a quieter machine, so they alone make no disturbed row FASTER or
SLOWER. Pairs may: both of their sides were disturbed alike.
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from llama_perf.gate.evidence import Confirmation, Judgement, Trial
from llama_perf.results.baselines import BaselineRow
from llama_perf.results.disturbance import disturbance_of
from llama_perf.results.measurement import Measurement


def bandwidth_share(now: Measurement, stored: BaselineRow | None) -> float | None:
    """The device's bandwidth over the baseline's; None if either is not known."""
    processes = () if stored is None else stored.samples
    before = [one.device_bandwidth_gb_s for one in processes]
    known = [bandwidth for bandwidth in before if bandwidth]
    if now.device_bandwidth_gb_s is None or not known:
        return None
    return now.device_bandwidth_gb_s / median(known)


def disturbance_of_trial(trial: Trial, rows: Mapping[str, BaselineRow]) -> str:
    """By what either process was disturbed, in words; empty where it was by nothing.

    `rows` are the baseline's by id.
    """
    for result in (trial.row, trial.unquantized):
        if result is None or result.measurement is None:
            continue
        share = bandwidth_share(result.measurement, rows.get(result.id))
        if words := disturbance_of(result.measurement, share):
            return words if result is trial.row else f"its unquantized row: {words}"
    return ""


def undisturbed(
    confirmation: Confirmation, rows: Mapping[str, BaselineRow]
) -> Confirmation:
    """The confirmation without its disturbed processes, and how many those were."""
    kept, seen = [], []
    for trial in confirmation.fresh:
        if words := disturbance_of_trial(trial, rows):
            seen.append(words)
        else:
            kept.append(trial)
    if not seen:
        return confirmation
    count = f"{len(seen)} of {len(confirmation.fresh)}"
    disturbed = f"disturbed, so they do not count: {count} ({seen[0]})"
    return replace(confirmation, fresh=kept, disturbed=disturbed)


def guarded(
    speed: Judgement, disturbance: str, confirmation: Confirmation | None
) -> Judgement:
    """The judgement on the speed of a row, which a `disturbance` may have changed."""
    by_pairs = confirmation is not None and confirmation.pairs is not None
    if not disturbance or (speed.suspicious and by_pairs):
        return speed
    # What fresh processes decided on is suspicious.
    if speed.worse and not speed.suspicious:
        return replace(
            speed,
            changes=tuple(replace(change, worse=False) for change in speed.changes),
            undecided=True,
            reason=f"{speed.reason}; looks slower, but was disturbed: {disturbance}",
        )
    if speed.faster:
        reason = f"{speed.reason}; looks faster, but was disturbed: {disturbance}"
        return replace(speed, faster=False, reason=reason)
    return speed
