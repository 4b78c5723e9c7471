"""The accuracy of a network."""

from collections.abc import Callable

import torch
from torch import nn

from kdnb.data.loader import Loader


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    precision: str = "float32",
    is_teacher: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Accuracies "top1" and "top5" (%) and cross-entropy "loss" of all images, in eval mode.

    Args:
        model: the network; its mode is restored at the end, also after an error.
        loader: the batches.
        precision: float32 or bfloat16.
        is_teacher: whether the network gets the teacher's images of each batch.
        after_batch: called after each batch; it may raise to stop.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=loader.device)
    try:
        for batch in loader.epoch():
            images = batch.for_teacher if is_teacher else batch.images
            labels = batch.labels
            with torch.autocast(loader.device.type, torch.bfloat16, precision == "bfloat16"):
                logits = model(images).logits.float()
            correct = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([correct[:, 0].sum(), correct.sum(), loss])
            after_batch()
    finally:
        model.train(was_training)
    top1, top5, loss = (value / len(loader.images) for value in sums.tolist())
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}
