"""Hostile inputs and faults, tried one by one, by ``nox -s robustness``.

Each module of :mod:`robustness.kinds` adds cases to a table (:class:`robustness.cases.Case`): how
to make the files, the command, and what must be said. Nothing else is needed for a new kind.
"""
