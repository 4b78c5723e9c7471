"""The pairs of networks that the CRD table compares methods on (Tian et al., ICLR 2020, tables 1 and 2)."""

SAME_STYLE = [
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("cifar_vgg13", "cifar_vgg8"),
]
OTHER_STYLE = [
    ("cifar_vgg13", "cifar_mobilenetv2"),
    ("cifar_resnet50", "cifar_mobilenetv2"),
    ("cifar_resnet50", "cifar_vgg8"),
    ("resnet32x4", "cifar_shufflenetv1"),
    ("resnet32x4", "cifar_shufflenetv2"),
    ("wrn_40_2", "cifar_shufflenetv1"),
]
PAIRS = {f"{teacher}-{student}": (teacher, student) for teacher, student in SAME_STYLE + OTHER_STYLE}
