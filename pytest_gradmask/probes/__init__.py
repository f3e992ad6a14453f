"""Probes explain a verdict: each looks at one symptom and returns findings, explained in ``docs/findings.md``.

Those of `suite.probe_defense` ask the defense, before any attack runs; those of `comparisons` only look at what the
attacks of an audit broke. A finding that undermines the attacks keeps an audit from saying ``NOT_MASKED``: attacks
that cannot work prove nothing.
"""
