"""Networks of one encoder and three decoders: small for a CPU, or as large as the paper's."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

Tensor = Any

STRIDE = 8
# From the stride of a stage to its filters in the encoder and in the decoders.
TINY_STAGE_FILTERS = {2: (16, 16), 4: (32, 24)}
TINY_FILTERS = 80
# Multiples of these filters.
WIDTHS = {"tiny": 1, "wide": 2}
TINY_DILATIONS = (1, 2, 4, 8, 1)

RESNET_101_BLOCKS = [3, 4, 23, 3]
DILATION_OF_STACK = {"stack2": 2, "stack3": 4}
# DeepLabV3 doubles these rates at stride 8, but tiny Cityscapes has only 16×32 features there.
PYRAMID_DILATIONS = [6, 12, 18]
PYRAMID_FILTERS = 256
PAPER_DECODER_FILTERS = 256


def build_network(kind: str, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds a network for the three tasks.

    Args:
        kind: `"tiny"`: strided and dilated convolutions, and decoders with skip connections.
            `"wide"`: the same with twice the filters. `"paper"`: a dilated ResNet-101 with atrous
            spatial pyramid pooling, which needs KerasHub.
        image_shape: Height, width and channels; height and width are multiples of 8.
        num_classes: Number of classes.

    Returns:
        A functional model from images with values between 0 and 255 to a dict:

        - `classes`: logits (H, W, num_classes).
        - `instances`: vectors in pixels to the centre of the instance, (H, W, 2).
        - `inverse_depth`: disparity in pixels, (H, W, 1).

    Raises:
        ValueError: If `kind` is unknown, or height or width is no multiple of 8.

    Example:

    ```python
    network = build_network("tiny", (64, 128, 3), num_classes=9)
    model = MultiTaskModel(network.input, network.output, UncertaintyWeighting(scene_tasks()))
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115)
        - [Chen et al., 2017](https://arxiv.org/abs/1706.05587), for `"paper"`
    """
    if kind not in (*WIDTHS, "paper"):
        raise ValueError(f'`kind` must be "tiny", "wide" or "paper". Received: kind={kind!r}')
    if any(size % STRIDE for size in image_shape[:2]):
        raise ValueError(
            f"`image_shape` must have a height and a width that are multiples of {STRIDE}. "
            f"Received: image_shape={image_shape}"
        )
    image = keras.Input(image_shape, name="image")
    scaled = layers.Rescaling(1.0 / 127.5, offset=-1.0)(image)
    channels = {"classes": num_classes, "instances": 2, "inverse_depth": 1}
    if kind in WIDTHS:
        width = WIDTHS[kind]
        features, skips = _tiny_encoder(scaled, width)
        outputs = {
            task: _tiny_decoder(features, skips, count, task, width)
            for task, count in channels.items()
        }
    else:
        features = _paper_encoder(scaled)
        outputs = {task: _paper_decoder(features, count, task) for task, count in channels.items()}
    return keras.Model(image, outputs, name=kind)


def _tiny_encoder(image: Tensor, width: int) -> tuple[Tensor, dict[int, Tensor]]:
    """Features at stride 8, and skip features by their stride."""
    skips = {}
    x = image
    for stride, (filters, _) in TINY_STAGE_FILTERS.items():
        x = _convolution(x, width * filters, strides=2)
        x = _convolution(x, width * filters)
        skips[stride] = x
    x = _convolution(x, width * TINY_FILTERS, strides=2)
    for dilation in TINY_DILATIONS:
        x = layers.Add()([x, _convolution(x, width * TINY_FILTERS, dilation_rate=dilation)])
    return x, skips


def _tiny_decoder(
    x: Tensor, skips: dict[int, Tensor], channels: int, task: str, width: int
) -> Tensor:
    for stride in sorted(skips, reverse=True):
        _, filters = TINY_STAGE_FILTERS[stride]
        x = _convolution(x, width * filters, kernel_size=1)
        x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        x = layers.Concatenate()([x, skips[stride]])
        x = _convolution(x, width * filters)
    x = layers.Conv2D(channels, 1)(x)
    return layers.UpSampling2D(2, interpolation="bilinear", name=task)(x)


def _paper_encoder(image: Tensor) -> Tensor:
    """DeepLabV3's features at stride 8."""
    import keras_hub  # an optional dependency

    resnet = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=RESNET_101_BLOCKS,
        stackwise_num_strides=[1, 2, 1, 1],
        block_type="bottleneck_block",
        image_shape=tuple(image.shape[1:]),
    )
    dilated = keras.models.clone_model(resnet, clone_function=_dilated)
    return _spatial_pyramid_pooling(dilated(image))


def _dilated(layer: Any) -> Any:
    """A copy of a ResNet layer, dilated to keep its receptive field without the strides."""
    config = layer.get_config()
    dilation = DILATION_OF_STACK.get(layer.name.split("_")[0])
    if dilation and config.get("kernel_size") == (3, 3):
        config["dilation_rate"] = dilation
    return type(layer).from_config(config)


def _spatial_pyramid_pooling(x: Tensor) -> Tensor:
    """Atrous spatial pyramid pooling.

    KerasHub's layer is private, and a saved model with that layer cannot be loaded.
    """
    height, width = x.shape[1:3]
    whole = layers.GlobalAveragePooling2D(keepdims=True)(x)
    whole = _convolution(whole, PYRAMID_FILTERS, kernel_size=1)
    branches = [
        layers.UpSampling2D((height, width))(whole),
        _convolution(x, PYRAMID_FILTERS, kernel_size=1),
        *(_convolution(x, PYRAMID_FILTERS, dilation_rate=rate) for rate in PYRAMID_DILATIONS),
    ]
    return _convolution(layers.Concatenate()(branches), PYRAMID_FILTERS, kernel_size=1)


def _paper_decoder(x: Tensor, channels: int, task: str) -> Tensor:
    x = _convolution(x, PAPER_DECODER_FILTERS)
    x = layers.Conv2D(channels, 1)(x)
    return layers.UpSampling2D(STRIDE, interpolation="bilinear", name=task)(x)


def _convolution(x: Tensor, filters: int, kernel_size: int = 3, **kwargs: Any) -> Tensor:
    x = layers.Conv2D(filters, kernel_size, padding="same", use_bias=False, **kwargs)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x)
