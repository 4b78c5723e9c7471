"""The pairs of networks that the CRD paper compares methods on (Tian et al., tables 1 and 2)."""

STUDENTS = {  # by teacher
    "wrn_40_2": ["wrn_16_2", "wrn_40_1", "cifar_shufflenetv1"],
    "resnet56": ["resnet20"],
    "resnet110": ["resnet20", "resnet32"],
    "resnet32x4": ["resnet8x4", "cifar_shufflenetv1", "cifar_shufflenetv2"],
    "cifar_vgg13": ["cifar_vgg8", "cifar_mobilenetv2"],
    "cifar_resnet50": ["cifar_mobilenetv2", "cifar_vgg8"],
}
PAIRS = {  # "teacher-student": (teacher, student)
    f"{teacher}-{student}": (teacher, student)
    for teacher, students in STUDENTS.items()
    for student in students
}
