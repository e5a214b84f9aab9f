"""The published stages: FlyingChairs, then FlyingThings3D, then Sintel with KITTI and HD1K, or KITTI."""

from dataclasses import replace

from deqflow.training.config import TrainConfig

# From the appendix of Bai et al. 2022, which follows RAFT (Teed and Deng 2020): AdamW, linear one-cycle schedule,
# largest gradient norm 1.
_PUBLISHED = TrainConfig(
    size="base",
    weight_decay=1e-4,
    clip=1.0,
    cycle_momentum=False,
    evals=(36, 36),
    corrections=6,
    bfloat16=False,
    attraction="none",
    workers=4,
    validate_every=5000,
)

PUBLISHED: dict[str, TrainConfig] = {
    "chairs": replace(_PUBLISHED, stage="chairs", steps=120_000, batch=12, lr=4e-4, crop=(368, 496)),
    "things": replace(
        _PUBLISHED,
        stage="things",
        steps=120_000,
        batch=6,
        lr=1.25e-4,
        crop=(400, 720),
        evals=(40, 40),
        corrections=2,
        phantom_steps=3,
        all_gradients=True,
        freeze_batch_norm=True,
    ),
    "sintel": replace(
        _PUBLISHED,
        stage="sintel",
        steps=120_000,
        batch=6,
        lr=1.25e-4,
        crop=(368, 768),
        gamma=0.9,
        phantom_steps=3,
        freeze_batch_norm=True,
    ),
    "kitti": replace(
        _PUBLISHED,
        stage="kitti",
        steps=50_000,
        batch=6,
        lr=1e-4,
        crop=(288, 960),
        gamma=0.9,
        freeze_batch_norm=True,
    ),
}
