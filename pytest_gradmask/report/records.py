"""The record of one audit: what a test hands on to the collector and to the HTML report."""

from __future__ import annotations

from typing import Any, TypedDict


class AuditRecord(TypedDict):
    """One audit together with its evidence. Both are plain data, so that pytest-xdist can send them between processes.

    Attributes:
        audit: the audit in its JSON form.
        evidence: what `collect_evidence` returned; empty if no HTML report is written.
    """

    audit: dict[str, Any]
    evidence: dict[str, Any]
