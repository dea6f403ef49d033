"""Whether versions may share a task's traffic."""

from __future__ import annotations

from adapters.adapter_store import AdapterStore
from adapters.spec import AdapterSpec, shown
from adapters.traffic import Split
from service.refusals import InvalidRequest
from service.traffic.seen import REGRESSION


def check_versions(store: AdapterStore, task: str, split: Split) -> None:
    """Raises InvalidRequest for versions that cannot share the traffic, or a rule that can never
    hold; as `Store.get` for one that cannot be served."""
    entry = store.entry(task)
    roles = split.roles()
    _check_rule(split)
    for role, digest in roles.items():
        if digest == split.active:
            raise InvalidRequest(
                f"the {role} is version {digest[:12]}, the active one of task {task!r}; expected"
                " another version"
            )
    active = store.get(task, split.active).spec
    for role, digest in roles.items():
        version = entry.version(digest)
        name = f"version {digest[:12] if version is None else entry.shown(version)}, the {role}"
        spec = store.get(task, digest).spec
        for what in ("problem_type", "text_pair", "template"):
            found, expected = getattr(spec, what), getattr(active, what)
            if found != expected:
                raise InvalidRequest(
                    f"{name} of task {task!r}, has {what} {shown(found)}; expected"
                    f" {shown(expected)}, as the active version has"
                )
        if role == "canary":
            _check_canary(name, spec, active, split)


def _check_rule(split: Split) -> None:
    rule = split.rollback
    if rule is None:
        return
    if split.canary is None:
        raise InvalidRequest("the body has a rollback without a canary; expected both, or neither")
    if rule.disagreement is None and rule.errors is None:
        raise InvalidRequest(
            "rollback has neither disagreement nor errors; expected at least one of them"
        )


def _check_canary(name: str, spec: AdapterSpec, active: AdapterSpec, split: Split) -> None:
    if spec.labels != active.labels and not split.labels_may_differ:
        raise InvalidRequest(
            f"{name} of task {spec.task!r}, has the labels {shown(list(spec.labels))}; expected"
            f" {shown(list(active.labels))}, as the active version has, or"
            ' "labels_may_differ": true'
        )
    rule = split.rollback
    if rule is not None and rule.disagreement is not None and spec.problem_type == REGRESSION:
        raise InvalidRequest(
            f"rollback has a disagreement, and task {spec.task!r} is a regression, which has no"
            " labels; expected errors alone"
        )
