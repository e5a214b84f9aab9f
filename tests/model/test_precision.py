import pytest
import torch

from deqflow.model import precision
from deqflow.model.precision import choose_device, fast_precision, product_speed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    precision._fast_precision.cache_clear()
    yield
    precision._fast_precision.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "known"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, None),
        ({"architecture": "aarch64"}, None),
    ],
)
def test_capabilities_are_asked_first(monkeypatch, capabilities, known):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision._multiplies_bfloat16(CPU) is known
    if known is not None:
        monkeypatch.setattr(precision, "product_speed", lambda *_: pytest.fail("a product was timed"))
        assert fast_precision("cpu") == (torch.bfloat16 if known else torch.float32)


@pytest.mark.parametrize(("ratio", "expected"), [(2.2, torch.bfloat16), (1.1, torch.float32), (0.01, torch.float32)])
def test_two_products_decide_once_where_capabilities_leave_it_open(monkeypatch, ratio, expected):
    timed = []

    def speed(device, dtype):
        timed.append(dtype)
        return ratio if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_multiplies_bfloat16", lambda device: None)
    monkeypatch.setattr(precision, "product_speed", speed)
    assert fast_precision("cpu") == fast_precision(CPU) == expected
    assert timed == [torch.float32, torch.bfloat16]


def test_devices_without_mkldnn_and_others_than_gpus_stay_with_float32(monkeypatch):
    assert precision._multiplies_bfloat16(torch.device("mps")) is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fast_precision("cpu") == torch.float32


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_are_asked_for_their_generation(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision._multiplies_bfloat16(torch.device("cuda")) is expected


def test_the_speed_is_that_of_a_product():
    assert 1e6 < product_speed(CPU, torch.float32, side=64) < 1e15


def test_devices_are_chosen_by_name(monkeypatch):
    assert choose_device("cpu") == choose_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_devices_that_are_not_there_are_named(monkeypatch):
    with pytest.raises(ValueError, match="Expected a device such as auto, cpu, cuda or cuda:1, got 'toaster'"):
        choose_device("toaster")
    with pytest.raises(ValueError, match="No device meta: it computes nothing"):
        choose_device("meta")
    with pytest.raises(ValueError, match="No device xla: torch can't use it here"):
        choose_device("xla")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="No device cuda:1: torch finds no GPU here"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="No device cuda:1: torch finds 1 GPUs here, counted from 0"):
        choose_device("cuda:1")
