"""Repetitions: the mean and the standard deviation of rows that differ only in their seed."""

from __future__ import annotations

from collections import Counter
from statistics import fmean, stdev

from mobilemamba.sweep.record import Record, conditions

#: Columns besides the scores that differ between repetitions.
_MEASURED = ("throughput", "throughput_spread", "hours", "peak_mem_gib")


def over_seeds(records: list[Record]) -> list[Record]:
    """Merges the rows of each group into one record.

    Args:
        records: Records of one sweep, with the name of their group in ``group``.

    Returns:
        The records, with ``KEY_sd`` for each score (sample standard deviation; None for fewer than two values) and
        ``seeds``, the number of rows in the means. Unknown values are left out of the means.
    """
    groups: dict[str, list[Record]] = {}
    for entry in records:
        groups.setdefault(entry["group"], []).append(entry)
    return [_merged(name, members) for name, members in groups.items()]


def spread(entry: Record, key: str) -> str:
    """Formats a deviation as `` ± 0.35``, or blank; adds the number of seeds if some rows of the group lack a value."""
    deviation = entry.get(f"{key}_sd")
    if deviation is None or deviation != deviation:
        return ""
    return f" ± {deviation:.2f}" + (f" ({entry['seeds']})" if entry["seeds"] < entry["runs"] else "")


def _merged(name: str, members: list[Record]) -> Record:
    keys = [score.key for score in members[0]["scores"]]
    if len(members) == 1:
        return {**members[0], **{f"{key}_sd": None for key in keys}, "seeds": 1, "runs": 1}
    # The data and the epochs that the scores are of; those of a row that is not finished are not known, or not reached.
    first = next((entry for entry in members if entry["status"] == "finished"), members[0])
    merged = {**first, "run": name, "runs": len(members)}
    merged["shared_device"] = any(entry["shared_device"] for entry in members)
    for key in (*keys, *(f"{key}_ema" for key in keys), *_MEASURED):
        values = [entry[key] for entry in members if entry[key] is not None]
        merged[key] = fmean(values) if values else None
        if key in keys:
            merged[f"{key}_sd"] = stdev(values) if len(values) > 1 else None
    ways = dict.fromkeys(conditions(entry) for entry in members if entry["throughput"] is not None)
    known = [text or "in an unknown way" for text in ways] if len(ways) > 1 else list(ways)
    merged["throughput_conditions"] = "; other seeds: ".join(known)
    merged["seeds"] = max((sum(entry[key] is not None for entry in members) for key in keys), default=0)
    states = Counter(entry["status"] for entry in members)
    counted = [f"{count} {state}" for state, count in states.items()]
    merged["status"] = ", ".join(counted) if len(states) > 1 else members[0]["status"]
    merged["reason"] = next((entry["reason"] for entry in members if entry["reason"]), None)
    return merged
