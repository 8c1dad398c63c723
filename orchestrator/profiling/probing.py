"""Test messages between workers, over the sockets that rows take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from orchestrator.control.worker_group import Workers
from orchestrator.profiling.contention import Pair
from orchestrator.profiling.links import Latency
from workers.runtime.spec import ProbeTimes

WARM_PROBES, SMALL_PROBES = 2, 5
TRAIN = 5
PROBE_SECONDS = 20.0


class ActorProber:
    """A `Prober` that asks the worker of each sender over Ray."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def latencies(self, pairs: Sequence[Pair]) -> dict[Pair, Latency]:
        rounds = [self._probe(pairs, 0, 1) for _ in range(WARM_PROBES + SMALL_PROBES)][WARM_PROBES:]
        return {
            pair: Latency(
                statistics.median(r[pair].send_seconds for r in rounds),
                statistics.median(r[pair].flight_seconds for r in rounds),
            )
            for pair in pairs
        }

    def rates(self, pairs: Sequence[Pair], nbytes: int) -> dict[Pair, tuple[float, float]]:
        rates = {}
        for pair, times in self._probe(pairs, nbytes, TRAIN).items():
            seconds = max(times.came_seconds[-1] - times.came_seconds[0], 1e-9)
            rates[pair] = nbytes * (TRAIN - 1) / seconds, seconds
        return rates

    def _probe(self, pairs: Sequence[Pair], nbytes: int, count: int) -> dict[Pair, ProbeTimes]:
        calls = {
            sender: self._workers[sender].actor.probe.remote(receiver, nbytes, count, PROBE_SECONDS)
            for sender, receiver in pairs
        }
        times = self._workers.gather(calls, PROBE_SECONDS + 1, f"reach {', '.join(receiver for _, receiver in pairs)}")
        return {pair: times[pair[0]] for pair in pairs}
