"""torchvision's Mask R-CNN R50-FPN on the same batch. Importing this file needs torch and torchvision."""

from functools import partial

import jax
import numpy as np
import torch
import torchvision
from benchmark_detector import NUM_OBJECTS, Settings, synthetic_batch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck

# (RoI, class) pairs an image that pass the score threshold.
CANDIDATES = 1000


class Peer:
    """torchvision's `maskrcnn_resnet50_fpn` as its reference script trains it: frozen norms, three stages trained, SGD.

    Its residual branches are scaled by zero, as ours are. What it computes depends on the data, and random weights
    would give it nothing to do: the score threshold is set such that `CANDIDATES` pairs pass. Detection ends with
    28 x 28 masks, as ours does: pasting is left out. Raises RuntimeError where its operators or the device are missing.
    """

    def __init__(self, settings: Settings):
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        gpu = jax.default_backend() == "gpu"
        if gpu and not torch.cuda.is_available():
            raise RuntimeError("this torch has no CUDA, and a CPU against a GPU says nothing")
        self.device = torch.device("cuda" if gpu else "cpu")
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
        # JAX multiplies float32 in TF32 on a GPU too.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)

        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        for module in backbone.modules():
            if isinstance(module, Bottleneck):
                module.bn3.weight.zero_()
        low, high = sorted(settings.size)
        self.model = MaskRCNN(backbone, num_classes=81, min_size=low, max_size=high).to(self.device)
        self.model.transform.postprocess = lambda detections, *_: detections
        self.optimizer = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9, weight_decay=1e-4
        )
        self.images, self.targets = self._batch(settings)
        # RoIs an image that each head read the last time. Ours reads a fixed number.
        self.rois = {"box": 0.0, "mask": 0.0}
        self.model.roi_heads.box_roi_pool.register_forward_hook(partial(self._count, "box"))
        self.model.roi_heads.mask_roi_pool.register_forward_hook(partial(self._count, "mask"))
        self._let_candidates_pass(CANDIDATES * settings.batch)

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            with self.autocast:
                loss = sum(self.model(self.images, self.targets).values())
            loss.backward()
            self.optimizer.step()
        self._finish()

    def inference(self, times: int) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast:
            for _ in range(times):
                self.model(self.images)
        self._finish()

    def peak_memory(self) -> float | None:
        """MiB of tensors on the GPU at the highest, or None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None

    def _batch(self, settings: Settings) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
        batch = synthetic_batch(settings)
        pixels = torch.from_numpy(batch.image).to(self.device).permute(0, 3, 1, 2).float() / 255
        targets = []
        for boxes, classes in zip(batch.gt.boxes[:, :NUM_OBJECTS], batch.gt.classes[:, :NUM_OBJECTS], strict=True):
            masks = np.zeros((NUM_OBJECTS, *settings.size), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
                mask[y1:y2, x1:x2] = 1
            arrays = {"boxes": boxes, "labels": classes.astype(np.int64), "masks": masks}
            targets.append({name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()})
        return list(pixels), targets

    def _count(self, head: str, _module, _inputs, pooled: torch.Tensor) -> None:
        self.rois[head] = len(pooled) / len(self.images)

    def _let_candidates_pass(self, number: int) -> None:
        heads, logits = self.model.roi_heads, []
        hook = heads.box_predictor.register_forward_hook(lambda _module, _inputs, out: logits.append(out[0]))
        self.inference(1)
        hook.remove()
        scores = logits[0].float().softmax(-1)[:, 1:].flatten()
        heads.score_thresh = scores.topk(number).values[-1].item()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
