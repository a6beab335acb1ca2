"""Your own perturbation sets; every stage that uses `threat.set` depends on this folder.

A set is a class with the operations of `pipeline.perturbation.PerturbationSet`, called with the
radius: `threat: {set: plugins.sets.MODULE:CLASS, eps: ...}`.
"""
