# RetinaNet R50-FPN on COCO for MMDetection 3: 1x, all layers trained, norms synchronised over GPUs. `checkpoint` is what
# retinanet_weights.py made of an export of --format mmdet; P6, P7 and the head begin at random.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # RGB pictures in 0..255, as in pre-training.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    init_cfg=dict(type='Pretrained', checkpoint='retinanet.pth'),
    backbone=dict(
        frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, style='pytorch', init_cfg=None),
    neck=dict(norm_cfg=norm_cfg))
# Detectron2's 1x: 90,000 iterations of 16 images (8 GPUs of 2), shorter side 640 to 800 pixels.
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR', begin=0, end=90000, by_epoch=False, milestones=[60000, 80000], gamma=0.1),
]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='RandomChoiceResize',
                scales=[(1333, side) for side in (640, 672, 704, 736, 768, 800)],
                keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ]))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
