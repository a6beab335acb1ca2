"""Settings of methods and of the training loop at the sizes of the tests: every switch stated, nothing large."""

from typing import Any

from pipeline import params

# Every method with every switch stated, at sizes for 6x6 images.
METHODS: dict[str, params.Method] = {
    "standard": params.Standard(),
    "at_fgsm": params.FastGradientSign(target="least_likely", random_start=False, clean_weight=0.25),
    "at_pgd": params.ProjectedGradient(steps=4, step_size=0.08),
    "trades": params.Trades(beta=3.0, steps=3, step_size=0.08, start_scale=0.05),
    "feature_scatter": params.FeatureScatter(
        steps=2, step_size=0.15, label_smoothing=0.5, regularization=0.1, iterations=20, plan_gradient=True
    ),
    "adt_exp": params.Explicit(
        lam=0.1, outer_samples=1, steps=3, samples=2, inner_lr=0.3, initial_rho=0.0, accumulate=True, damping=1e-8
    ),
    "adt_exp_am": params.Amortized(lam=0.1, outer_samples=1, width=4, generator_lr=0.001, gradient_input="sign"),
    "adt_imp_am": params.AmortizedImplicit(
        lam=1.0,
        outer_samples=1,
        width=4,
        generator_lr=0.001,
        gradient_input="sign",
        latent=5,
        encoder_width=2,
        hinge=True,
        tau=0.5,
    ),
}


def train_settings(**changes: Any) -> params.Train:
    """A training loop without frills: one epoch in one batch at a constant rate, and a weak validation attack."""
    plain = {
        "epochs": 1,
        "batch_size": 12,
        "optimizer": params.Optimizer(lr=0.1, momentum=0.9, weight_decay=0.001),
        "schedule": params.Schedule(name="constant"),
        "label_smoothing": 0.0,
        "ema": 0.0,
        "augmentation": params.Augmentation(crop=0, padding="zero", flip=False),
        "inner_batch_norm": "eval",
        "precision": "fp32",
        "selection": params.Selection(steps=1, step_size=0.1, batch_size=12),
        "patience": 0,
        "devices": 1,
        "batch_norm": "replica",
        "stall_seconds": 60.0,
        "checkpoint_seconds": 0,
    }
    return params.Train(**plain | changes)
