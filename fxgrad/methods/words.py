"""Methods and policies as the field writes them, for captions and pages."""

from __future__ import annotations

METHODS = {
    "gradient": "Gradient",
    "saliency": "Saliency",
    "input_x_gradient": "Input × Gradient",  # noqa: RUF001
    "integrated_gradients": "Integrated Gradients",
    "smoothgrad": "SmoothGrad",
    "shift_averaged": "Shift-averaged Input × Gradient",  # noqa: RUF001
    "gradcam": "Grad-CAM",
    "gradcam_plus": "Grad-CAM+",
    "xgradcam_plus": "XGrad-CAM+",
    "gradcam_plusplus": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "fullgrad": "FullGrad",
    "fullgrad_plus": "FullGrad+",
    "attcat": "AttCAT",
    "genatt": "GenAtt",
    "gradsam": "Grad-SAM",
    "tokentm": "TokenTM",
    "transatt": "TransAtt",
    "biattn": "Bi-attn",
    "legrad": "LeGrad",
    "raw_attention": "Raw attention",
    "rollout": "Attention rollout",
    "occlusion": "Occlusion",
    "rise": "RISE",
    "kernel_shap": "KernelSHAP",
    "random": "Random",
}
POLICIES = {
    "gradient": "plain gradient",
    "libragrad": "LibraGrad",
    "libragrad-without-attention": "LibraGrad without attention",
    "libragrad-without-gated-activation": "LibraGrad without gated activation",
    "libragrad-without-normalization": "LibraGrad without normalization",
    "libragrad-without-product": "LibraGrad without product",
    "attnlrp": "AttnLRP",
    "cp-lrp": "CP-LRP",
    "epsilon": "LRP-epsilon",
    "gamma": "LRP-gamma",
    "alpha-beta": "LRP-alpha-beta",
    "z-plus": "LRP-z+",
    "z-box": "LRP-z+ with a box",
    "gim": "GIM",
    "relp": "RelP",
    "alilrp": "AliLRP",
    "decompx": "DecompX",
    "freeze": "frozen as for circuits",
}


def method_in_words(name: str) -> str:
    """A method's name as the field writes it; one of your own with its underscores as spaces.

    Example:
        >>> method_in_words("fullgrad_plus"), method_in_words("my_own")
        ('FullGrad+', 'my own')
    """
    return METHODS.get(name, name.replace("_", " "))


def policy_in_words(name: str) -> str:
    """A policy's name as the field writes it; files of your own, which follow a +, and parameters as they are.

    Example:
        >>> policy_in_words("libragrad+mine"), policy_in_words("gamma (gamma = 0.5)")
        ('LibraGrad + mine', 'LRP-gamma (gamma = 0.5)')
    """
    names, space, given = name.partition(" (")
    return " + ".join(POLICIES.get(part, part) for part in names.split("+")) + space + given
