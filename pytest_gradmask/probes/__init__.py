"""Probes explain a verdict. Each tests for one symptom and returns findings, which ``docs/findings.md`` explains.

The probes of `suite.probe_defense` query the defense. The probes of `comparisons` only compare the images that the
attacks of an audit have broken. A finding that undermines the attacks prevents the verdict ``NOT_MASKED``, because
attacks that cannot work prove nothing.
"""
