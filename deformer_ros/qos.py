"""Quality of service of the node's topics, and mismatches in words."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

OVERRIDABLE = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


def newest_only() -> QoSProfile:
    """For images and calibrations: whatever the publisher offers, and never a queue of old ones."""
    return _profile(ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE, 1)


def stream() -> QoSProfile:
    """For what is published per image."""
    return _profile(ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 5)


def latched() -> QoSProfile:
    """For what is published once, also for those who come late."""
    return _profile(ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL, 1)


def transforms() -> QoSProfile:
    """As tf2's own broadcaster."""
    return _profile(ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 100)


def overriding() -> QoSOverridingOptions:
    """Lets `qos_overrides.<topic>.<publisher or subscription>.<policy>` parameters change a profile."""
    return QoSOverridingOptions(policy_kinds=OVERRIDABLE)


def _profile(reliability: ReliabilityPolicy, durability: DurabilityPolicy, depth: int) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
        liveliness=LivelinessPolicy.AUTOMATIC,
    )


def mismatch_reporter(node: Node, topic: str, subscribes: bool, report: Callable[[str], None]) -> Callable[[Any], None]:
    """A callback for incompatible-QoS events of a topic, which says in words what does not fit.

    subscribes: whether the node's side is the subscription. report: gets the sentence.
    """

    def on_event(event: Any) -> None:
        report(_explain(node, topic, subscribes, QoSPolicyKind(event.last_policy_kind)))

    return on_event


def _explain(node: Node, topic: str, subscribes: bool, policy: QoSPolicyKind) -> str:
    resolved = node.resolve_topic_name(topic)
    ours, theirs = ("subscription", "publisher") if subscribes else ("publisher", "subscription")
    name = policy.name.lower()
    infos = node.get_publishers_info_by_topic if subscribes else node.get_subscriptions_info_by_topic
    own = node.get_subscriptions_info_by_topic if subscribes else node.get_publishers_info_by_topic
    full_name = (node.get_name(), node.get_namespace())
    mine = {_value(info, name) for info in own(resolved) if (info.node_name, info.node_namespace) == full_name}
    others = sorted({f"{_value(info, name)} ({info.node_name})" for info in infos(resolved)} - {""})
    asks = " or ".join(sorted(mine)) or "another"
    has = ", ".join(others) or "another"
    return (
        f"QoS of {resolved} does not match in {name}: this node's {ours} has {asks}, the {theirs} has {has}; "
        f"nothing is passed between them until one changes, here by qos_overrides.{resolved}.{ours}.{name}"
    )


def _value(info: Any, policy: str) -> str:
    value = getattr(info.qos_profile, policy)
    return value.name.lower() if isinstance(value, Enum) else str(value)
