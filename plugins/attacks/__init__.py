"""Your own attacks; every stage that attacks models depends on this folder.

An attack is a function (model, x, labels, perturbations, noise, **options) to images of the shape of x,
named in params.yaml as `evaluation.attacks.NAME: {family: plugins.attacks.MODULE:FUNCTION}`.
"""
