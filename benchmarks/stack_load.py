"""The team stack under many clients while a pipeline runs: answers by status, latencies, and whether the runs ended well.

    python -m benchmarks.stack_load --dagster http://127.0.0.1:3000 --mlflow http://127.0.0.1:5000 --clients 50 --seconds 60

As many clients again ask MLflow as ask Dagster, each one request after the other, what their pages and the command line ask: assets,
runs and ticks; experiments, runs, versions, and a metric logged to a run of each client's own. Meanwhile the job ``everything`` is launched
again whenever it has ended. MLflow's account comes from ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``. The load stays
on this machine: addresses that are not loopback are refused, and so are more clients or seconds than it takes to find out.

Exits with 1 where a run failed, or a client got an error (5xx, GraphQL's, refused) or no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np

MOST_CLIENTS, MOST_SECONDS = 200, 600.0
TIMEOUT_S = 60.0
LOOK_EVERY_S = 1.0
APART_S = 0.05  # begins one client after the other: people do not arrive in the same instant
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
EXPERIMENT = "stack load"
API = "/api/2.0/mlflow"
LAUNCH = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = """query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"""
# What Dagster's pages ask for, each of them cheaper than the page.
QUERIES = {
    "assets": "{ assetNodes { assetKey { path } partitionKeys staleStatus assetMaterializations(limit: 1) { runId } } }",
    "runs": "{ runsOrError(limit: 25) { ... on Runs { results { runId status startTime stats { __typename } } } } }",
    "sensors": "{ repositoriesOrError { ... on RepositoryConnection { nodes { name sensors { name sensorState { status } } } } } }",
    "instance": "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy } } } }",
}


@dataclass
class Seen:
    """What clients of one server saw.

    Attributes:
        statuses: how many answers had each status; 0: none came.
        seconds: of each answer.
        troubles: words about whatever was no good answer, and how often.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)

    async def ask(self, request: Callable[[], Awaitable[httpx.Response]]) -> Any:
        """The answer's JSON, or None; whatever happens is counted."""
        began = time.monotonic()
        try:
            answer = await request()
        except httpx.HTTPError as error:
            self.statuses[0] += 1
            self.troubles[type(error).__name__] += 1
            return None
        self.seconds.append(time.monotonic() - began)
        self.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            self.troubles[f"{answer.status_code} {answer.request.url.path} {answer.text[:120]!r}"] += 1
            return None
        found = answer.json()
        if found.get("errors"):  # GraphQL says so in an answer of 200
            self.troubles[f"GraphQL: {found['errors'][0].get('message', '')[:120]}"] += 1
            return None
        return found


def main() -> None:
    options = _options()
    try:
        dagster, mlflow, runs = asyncio.run(_load(options))
    except httpx.HTTPError as error:
        sys.exit(f"no load: {type(error).__name__} ({error}) of {options.dagster} or {options.mlflow}; does the stack run?")
    print("| server | clients | requests | answers by status | a second | p50 ms | p99 ms | longest ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, seen in (("Dagster, GraphQL", dagster), ("MLflow, REST", mlflow)):
        p50, p99, longest = np.percentile(seen.seconds or [0.0], [50, 99, 100]) * 1000
        statuses = ", ".join(f"{status or 'none'}: {count:,}" for status, count in sorted(seen.statuses.items()))
        requests = sum(seen.statuses.values())
        times = f"{requests / options.seconds:.0f} | {p50:.0f} | {p99:.0f} | {longest:.0f}"
        print(f"| {name} | {options.clients} | {requests:,} | {statuses} | {times} |")
    ended = ", ".join(f"{status} {count}" for status, count in sorted(Counter(runs).items()))
    print(f"\nruns of `{options.job}` meanwhile: {ended or 'none'}")
    for trouble, count in [*dagster.troubles.most_common(5), *mlflow.troubles.most_common(5)]:
        print(f"{count} × {trouble}")
    if dagster.troubles or mlflow.troubles or set(runs) != {"SUCCESS"}:
        sys.exit(1)


async def _load(options: argparse.Namespace) -> tuple[Seen, Seen, list[str]]:
    dagster, mlflow = Seen(), Seen()
    account = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    async with _session(options.dagster, options.clients) as pages, _session(options.mlflow, options.clients, account) as registry:
        experiment = await _experiment(registry)
        end = time.monotonic() + options.seconds
        runs, *_ = await asyncio.gather(
            _pipeline(pages, options.job, end),
            *(_ask_dagster(pages, dagster, number, end) for number in range(options.clients)),
            *(_ask_mlflow(registry, mlflow, number, experiment, end) for number in range(options.clients)),
        )
    return dagster, mlflow, runs


@asynccontextmanager
async def _session(address: str, clients: int, account: tuple[str, str] | None = None) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)  # one for the runs
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT_S, trust_env=False, limits=limits, auth=account) as session:
        yield session


async def _pipeline(session: httpx.AsyncClient, job: str, end: float) -> list[str]:
    """Launch the job, again whenever it has ended, until the time is over; how each ended. The last one may take longer."""
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "mlembed", "pipelineName": job}
    ended: list[str] = []
    while not ended or time.monotonic() < end:
        launched = await _graphql(session, LAUNCH, p={"selector": selector, "runConfigData": {}, "mode": "default"})
        found = launched["launchPipelineExecution"]
        if "run" not in found:
            sys.exit(f"the job {job} was not launched: {found}")
        while (status := (await _graphql(session, STATUS, r=found["run"]["runId"]))["runOrError"]["status"]) not in ENDED:
            await asyncio.sleep(LOOK_EVERY_S)
        ended.append(status)
    return ended


async def _graphql(session: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    answer = await session.post("/graphql", json={"query": query, "variables": variables})
    answer.raise_for_status()
    return answer.json()["data"]


async def _ask_dagster(session: httpx.AsyncClient, seen: Seen, number: int, end: float) -> None:
    queries = list(QUERIES.values())
    await asyncio.sleep(number * APART_S)
    while time.monotonic() < end:
        query = queries[number % len(queries)]
        await seen.ask(lambda query=query: session.post("/graphql", json={"query": query}))
        number += 1


async def _ask_mlflow(session: httpx.AsyncClient, seen: Seen, number: int, experiment: str, end: float) -> None:
    """A run of its own, and in turns: a metric to it, and what the pages and `mlembed` look up."""
    await asyncio.sleep(number * APART_S)
    made = await seen.ask(lambda: session.post(f"{API}/runs/create", json={"experiment_id": experiment, "run_name": f"client {number}"}))
    run_id, step = made and made["run"]["info"]["run_id"], 0
    while time.monotonic() < end:
        step += 1
        if run_id and step % 4 == 0:
            metric = {"key": "loss", "value": 1 / step, "step": step, "timestamp": int(time.time() * 1000)}
            await seen.ask(lambda metric=metric: session.post(f"{API}/runs/log-batch", json={"run_id": run_id, "metrics": [metric]}))
        elif step % 4 == 1:
            await seen.ask(lambda: session.post(f"{API}/runs/search", json={"experiment_ids": [experiment], "max_results": 50}))
        elif step % 4 == 2:
            await seen.ask(lambda: session.get(f"{API}/model-versions/search", params={"max_results": 50}))
        else:
            await seen.ask(lambda: session.get(f"{API}/experiments/search", params={"max_results": 50}))


async def _experiment(session: httpx.AsyncClient) -> str:
    """The experiment that takes the clients' runs; exits where the account is refused."""
    found = await session.get(f"{API}/experiments/get-by-name", params={"experiment_name": EXPERIMENT})
    if found.status_code == 200:
        return str(found.json()["experiment"]["experiment_id"])
    made = await session.post(f"{API}/experiments/create", json={"name": EXPERIMENT})
    if made.status_code != 200:
        sys.exit(
            f"MLflow refused ({made.status_code} {made.text[:200]}); MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD name an account"
        )
    return str(made.json()["experiment_id"])


def _loopback(address: str) -> str:
    host = urlsplit(address).hostname or ""
    try:
        ours = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        ours = False
    if not ours:
        raise argparse.ArgumentTypeError(f"{address!r} is not on loopback: load is for your own machine (http://127.0.0.1:PORT)")
    return address.rstrip("/")


def _between(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def check(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return check


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dagster", type=_loopback, default="http://127.0.0.1:3000")
    parser.add_argument("--mlflow", type=_loopback, default="http://127.0.0.1:5000")
    parser.add_argument("--clients", type=_between(1, MOST_CLIENTS, int), default=50, help="of each of the two servers")
    parser.add_argument("--seconds", type=_between(1, MOST_SECONDS, float), default=60)
    parser.add_argument("--job", default="everything", help="that is run meanwhile, again and again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
