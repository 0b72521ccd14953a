"""A loopback stand-in for W&B's server: what `wandb.Api` reads and `wandb sync` uploads, and no more.

It proves our code against the client's protocol, not against W&B's own sampling and limits.
"""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import Quiet, served

PROJECT = "someone/hidden-weights"


# Faults of a server. The status, and the body that is sent; a status of 0 cuts the connection.
FAULTS = {
    "error": (500, b'{"errors": [{"message": "internal error"}]}'),
    "refused": (403, b'{"errors": [{"message": "permission denied"}]}'),
    "quota": (402, b'{"error": "storage limit exceeded"}'),
    "nonsense": (200, b"<html>under maintenance</html>"),
    "empty": (200, b'{"data": null}'),
    "cut": (0, b""),
    "silence": (0, b""),  # the answer does not come, for a minute
}

ARTIFACT = ("CreateArtifact", "CreateArtifactManifest", "CreateArtifactFiles", "UpdateArtifactManifest")
ARTIFACT += ("CommitArtifact", "ArtifactByID")


class Unanswered(Exception):
    """The stand-in has no answer to this request of the real client."""


@dataclass
class Standin:
    """Runs by id, in W&B's shape, and how the server is to behave."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by GraphQL operation."""
    latency: float = 0.0
    refuse: dict[str, int] = field(default_factory=dict)
    """How many of the next requests of an operation are answered with 429."""
    short: set[str] = field(default_factory=set)
    """Runs whose history comes back without its last rows."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """What was saved as W&B Reports."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """What was saved as views of the project."""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    """The artifacts that were committed: the content of the one file that each has, by their names."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by its path."""
    faults: dict[str, str] = field(default_factory=dict)
    """How an operation is answered (`file_stream`, or one of GraphQL; "*": all): a name of `FAULTS`, and
    behind an @ the number of requests that are answered well before."""
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends."""

    def add(self, result: Mapping[str, Any], **changed: Any) -> None:
        """A finished run as the sweeps log it; `changed` replaces parts of it."""
        summary = {**result["summary"], "seconds": result["seconds"], "finished": True}
        summary["initial_weights_checksum"] = result["initial_weights_checksum"]
        rows = [
            {**record, "attempt": 1, "_step": i, "_runtime": 1.0}
            for i, record in enumerate(result["history"])
        ]
        run = {
            "name": result["cell"],
            "displayName": result["name"],
            "state": "finished",
            "config": {**result["config"], "cell": result["cell"]},
            "summary": summary,
            "rows": rows,
            "tags": ["depth"],
            "group": "quickstart",
            "heartbeat": "2026-01-01T00:00:00",
        }
        self.runs[result["cell"]] = {**run, **changed}

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer."""
        operation = _operation(query)
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "1", "username": "someone", "entity": "someone", "admin": False}}
        if operation == "upsertView" and variables.get("projectName") == "hidden-weights":
            self.reports.append(dict(variables))
            project = {"id": "1", "name": variables["projectName"], "entityName": variables["entityName"]}
            view = {name: variables[name] for name in ("type", "name", "displayName", "description", "spec")}
            stamp = "2026-01-01T00:00:00"
            return {"upsertView": {"view": {**view, "id": "r1", "project": project, "updatedAt": stamp}}}
        if operation == "UpsertView2" and variables.get("projectName") == "hidden-weights":
            self.views.append(dict(variables))
            return {"upsertView": {"view": {"id": "v1", "name": variables["name"]}, "inserted": True}}
        if operation in ("ProjectInternalId", "Project", "UserProjects", "GetProjects"):
            return self._project(operation, variables)
        if operation == "UpsertBucket":
            return self._upsert(variables)
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "ArtifactType":  # whether a ticket's is another type: there is none yet
            return {"project": {"artifact": None}}
        if operation in ARTIFACT:
            return self._artifact(operation, variables)
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables["name"])}
        if variables.get("entity") != "someone" or variables.get("project") != "hidden-weights":
            return {"project": None}
        if operation == "Runs":
            return {"project": self._page(variables)}
        named = (variables[name] for name in ("name", "run", "runName") if name in variables)
        run = self.runs.get(next(named, ""))
        if run is None:
            return {"project": {"run": None}}
        return {"project": {"run": self._run(operation, run, variables)}}

    def _artifact(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """An artifact is made, its manifest and its file are uploaded, it is committed."""
        if operation == "CreateArtifact":
            name = variables["input"]["artifactCollectionName"]
            artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateArtifactFiles":
            (wanted,) = variables["input"]["artifactFiles"]
            name = wanted["artifactID"]
            node = {"storagePath": name, "uploadMultipartUrls": None, "artifact": {"id": name}}
            node |= {"uploadUrl": f"{self.url}/upload/{name}", "uploadHeaders": []}
            return {"createArtifactFiles": {"files": {"edges": [{"node": node}]}}}
        if operation == "CommitArtifact":
            name = variables["artifactID"]
            self.artifacts[name] = self.uploaded[f"/upload/{name}"]
            return {"commitArtifact": {"artifact": {"id": name, "digest": "1"}}}
        if operation == "ArtifactByID":
            return {"artifact": _artifact(variables["id"])}
        file = {"id": "1", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
        return {operation[0].lower() + operation[1:]: {"artifactManifest": {"id": "1", "file": file}}}

    def _resume_status(self, name: str) -> dict[str, Any]:
        """What is there of a run that is begun once more: the client drops the rows up to the last one."""
        bucket = None
        if run := self.runs.get(name):
            tail = [json.dumps(row) for row in run["rows"][-1:]]
            bucket = {"id": name, "name": name, "displayName": name, "historyTail": json.dumps(tail)}
            bucket |= {"historyLineCount": len(run["rows"]), "eventsTail": "[]", "eventsLineCount": 0}
            bucket |= {"summaryMetrics": json.dumps(run["summary"]), "config": "{}", "logLineCount": 0}
            bucket |= {"tags": run["tags"], "notes": None, "wandbConfig": '{"t": 1}'}
        return {
            "id": "1",
            "name": "hidden-weights",
            "entity": {"id": "1", "name": "someone"},
            "bucket": bucket,
        }

    def _upsert(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A run is begun, or says more of itself."""
        name = variables["name"]
        new = name not in self.runs
        run = self.runs.setdefault(
            name,
            {"name": name, "state": "running", "config": {}, "summary": {}, "rows": []}
            | {"tags": [], "group": None, "displayName": name, "heartbeat": "2026-01-01T00:00:00"},
        )
        config = json.loads(variables.get("config") or "{}")
        run["config"] |= {key: entry["value"] for key, entry in config.items() if key != "_wandb"}
        given = {"displayName": "displayName", "group": "groupName", "tags": "tags"}
        run |= {key: variables[other] for key, other in given.items() if variables.get(other)}
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "someone"}}
        bucket = _node(run) | {"project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def stream(self, name: str, body: Mapping[str, Any]) -> None:
        """What a run's file stream brings: lines of its history from an offset on, its summary, its end."""
        run = self.runs[name]
        for file, part in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]] if file.startswith("wandb-") else []
            if file == "wandb-history.jsonl":
                run["rows"][part["offset"] : part["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run["summary"] = lines[-1]
        if body.get("complete"):
            run["state"] = "finished" if body.get("exitcode") == 0 else "failed"

    def _project(self, operation: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if operation == "ProjectInternalId":
            known = variables["projectName"] == "hidden-weights"
            return {"project": {"id": "1", "internalId": "1"} if known else None}
        node = {
            "id": "1",
            "name": "hidden-weights",
            "entityName": "someone",
            "createdAt": "2026-01-01T00:00:00",
        }
        node |= {"isBenchmark": False, "user": None}
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": node, "cursor": "1"}], "pageInfo": page}}

    def _page(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        wanted = json.loads(variables.get("filters") or "{}").get("name")
        some = wanted["$in"] if isinstance(wanted, dict) else [wanted] if wanted else self.runs
        names = [name for name in self.runs if name in some]
        start = int(variables.get("cursor") or 0)
        stop = start + int(variables.get("perPage") or 50)
        edges = [
            {"node": _node(self.runs[name]), "cursor": str(start + i + 1)}
            for i, name in enumerate(names[start:stop])
        ]
        return {
            "internalId": "1",
            "runCount": len(names),
            "readOnly": False,
            "runs": {
                "edges": edges,
                "pageInfo": {"endCursor": str(stop), "hasNextPage": stop < len(names)},
            },
        }

    def _run(self, operation: str, run: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        rows = run["rows"][:-2] if run["name"] in self.short else run["rows"]
        if operation == "RunHistoryKeys":
            return {"historyKeys": _keys(run)}
        if operation == "RunParquetHistory":
            return {
                "parquetHistory": {"parquetUrls": [], "liveData": [{"_step": row["_step"]} for row in rows]}
            }
        if operation in ("HistoryPage", "RunFullHistory"):
            low, high = int(variables.get("minStep", 0)), int(variables.get("maxStep", 10**9))
            return {"history": [json.dumps(row) for row in rows if low <= row["_step"] < high]}
        raise Unanswered(operation)


def _operation(query: str) -> str:
    found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
    return found.group(1) if found else ""


def _artifact(name: str) -> dict[str, Any]:
    collection = {"__typename": "ArtifactSequence", "id": "1", "name": name}
    project = {"id": "1", "internalId": "1", "name": "hidden-weights", "entity": {"name": "someone"}}
    collection |= {"project": project}
    return {
        "id": name, "artifactSequence": collection, "versionIndex": 0, "artifactType": {"name": "ticket"},
        "description": None, "metadata": None, "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
        "historyStep": None, "state": "COMMITTED", "size": 1, "digest": "1", "commitHash": "1",
        "fileCount": 1, "createdAt": "2026-01-01T00:00:00", "updatedAt": None, "aliases": [],
    }  # fmt: skip


def _keys(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"lastStep": max((row["_step"] for row in run["rows"]), default=-1), "keys": {}, "sets": []}


def _node(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": run["name"],
        "projectId": "1",
        "name": run["name"],
        "displayName": run["displayName"],
        "state": run["state"],
        "config": json.dumps({name: {"value": value} for name, value in run["config"].items()}),
        "summaryMetrics": json.dumps(run["summary"]),
        "systemMetrics": "{}",
        "historyLineCount": len(run["rows"]),
        "historyKeys": _keys(run),
        "tags": run["tags"],
        "group": run["group"],
        "jobType": None,
        "sweepName": None,
        "commit": None,
        "readOnly": False,
        "createdAt": "2026-01-01T00:00:00",
        "heartbeatAt": run["heartbeat"],
        "description": None,
        "notes": None,
        "user": {"name": "someone", "username": "someone"},
    }


@contextlib.contextmanager
def serve() -> Iterator[Standin]:
    """A stand-in on a free port of the loopback interface."""
    standin = Standin()

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = json.loads(body or b"{}")
            stream = re.fullmatch(r"/files/.*/(\w+)/file_stream", self.path)
            operation = "file_stream" if stream else _operation(asked.get("query", ""))
            standin.asked[operation] += 1
            fault, _, first = (standin.faults.get(operation) or standin.faults.get("*") or "").partition("@")
            if fault and standin.asked[operation] > int(first or 0):
                return self._fail(fault)
            if stream:
                standin.stream(stream[1], asked)
                return self._send(200, {})
            time.sleep(standin.latency)
            if standin.refuse.get(operation, 0) > 0:
                standin.refuse[operation] -= 1
                return self._send(429, {"errors": [{"message": "rate limit exceeded"}]})
            try:
                return self._send(200, {"data": standin.answer(asked["query"], asked.get("variables") or {})})
            except Unanswered as error:
                return self._send(400, {"errors": [{"message": f"not in the stand-in: {error}"}]})

        def do_PUT(self) -> None:
            standin.uploaded[self.path] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._send(200, {})

        def _fail(self, fault: str) -> None:
            status, body = FAULTS[fault]
            if fault == "silence":
                standin.over.wait(60)
            if status:
                return self._send_bytes(status, body)
            self.close_connection = True
            return None

        def _send(self, status: int, body: dict[str, Any]) -> None:
            self._send_bytes(status, json.dumps(body).encode())

        def _send_bytes(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with served(Handler) as standin.url:
        try:
            yield standin
        finally:
            standin.over.set()
