"""What the networks cost next to how well they tag, where `kdfast latency` has measured it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdfast.report.networks import StudyNetworks
from kdfast.report.records import on_front
from kdfast.report.schema.runs import Configuration, Latency, Network
from kdfast.report.schema.values import Estimate, Role

__all__ = ["latencies"]


def latencies(study: StudyNetworks, rows: Sequence[Configuration], networks: Sequence[Network]) -> list[Latency]:
    """Teacher, baseline and every configuration whose size of network was measured, the fastest first.

    Networks of one size take the same time, so one measurement counts for all of them.
    """
    timed = [(document, document.timing("onnxruntime", 1)) for document in study.store.latencies().values()]
    measured = [(document, timing) for document, timing in timed if timing is not None]
    sizes = {(r.kind, r.name): r.card.get("model") for r in study.results if r.card}
    points: list[tuple[Role, str, Estimate | None]]
    points = [(network.role, network.run_name, network.auc) for network in networks if network.role != "student"]
    points += [("student", row.run_name, row.auc) for row in rows]
    found = []
    for role, name, auc in points:
        costs = [each for each in measured if each[0].model == sizes.get((role, name))]
        if auc is None or not costs:
            continue
        document, timing = costs[0]
        point = Latency(
            role=role,
            run_name=name,
            parameters=document.parameters,
            flops=document.flops_per_jet(),
            constituents=document.constituents,
            p50_us=timing.p50_us,
            p99_us=timing.p99_us,
            auc=auc,
            pareto=False,
        )
        found.append(point)
    front = on_front(np.array([[-each.p50_us, each.auc.value] for each in found]))
    marked = [each.model_copy(update={"pareto": bool(best)}) for each, best in zip(found, front, strict=True)]
    return sorted(marked, key=lambda each: (each.p50_us, -each.auc.value, each.run_name))
