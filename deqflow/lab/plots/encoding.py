"""Encode pixels as PNG files in memory, and as data addresses that a page or a figure shows without a file."""

import base64

import cv2
import numpy as np


def png(rgb: np.ndarray) -> bytes:
    """An RGB image (H, W, 3) uint8 as the bytes of a PNG file."""
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def png_address(rgb: np.ndarray) -> str:
    """An RGB image (H, W, 3) uint8 as a data address."""
    return "data:image/png;base64," + base64.b64encode(png(rgb)).decode()
