"""Networks: timm's architectures, pretrained weights, checkpoints."""
