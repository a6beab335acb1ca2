"""Names of methods as the field writes them, for figures and pages."""

_LABELS = {
    "standard": "standard",
    "at_fgsm": "AT_FGSM",
    "at_pgd": "AT_PGD",
    "trades": "TRADES",
    "feature_scatter": "FeaScatter",
    "adt_exp": "ADT_EXP",
    "adt_exp_am": "ADT_EXP-AM",
    "adt_imp_am": "ADT_IMP-AM",
}


def method_label(method: str) -> str:
    """The method's name as the paper writes it; one that is not known here stays as it is."""
    return _LABELS.get(method, method)
