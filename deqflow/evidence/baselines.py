"""Classical optical flow, for comparison."""

from typing import Any

import cv2
import torch
from torch import Tensor


def dis_flow(image1: Tensor, image2: Tensor) -> Tensor:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's implementation with its preset "medium".

    Args:
        image1, image2: (3, H, W), RGB, 0..255.

    Returns:
        (2, H, W) float32, in pixels.
    """
    grey1, grey2 = (
        cv2.cvtColor(image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        for image in (image1, image2)
    )
    solver: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # Any: its stubs forbid the None below
    return torch.from_numpy(solver.calc(grey1, grey2, None)).permute(2, 0, 1).contiguous()
