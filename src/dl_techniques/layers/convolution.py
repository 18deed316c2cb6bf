"""Keras' convolutions, on OpenVINO in layouts that need no copies."""

from __future__ import annotations

import keras


class Convolution(keras.layers.Conv2D):
    """Convolve over all channels, with padding "same" and channels last."""

    def effective_kernel(self, kernel):
        """Return the effective kernel, `(height, width, channels, filters)`; here the variable itself."""
        return kernel

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self.effective_kernel(kernel))

    def call(self, inputs):
        if keras.backend.backend() != "openvino":
            return super().call(inputs)
        from dl_techniques.layers.openvino_graph import convolve

        return convolve(inputs, self.effective_kernel(self.kernel), self.bias, self.strides)


class DepthwiseConvolution(keras.layers.DepthwiseConv2D):
    """Convolve each channel with its own window, with padding "same" and channels last."""

    def call(self, inputs):
        if keras.backend.backend() != "openvino":
            return super().call(inputs)
        from dl_techniques.layers.openvino_graph import convolve_depthwise

        return convolve_depthwise(inputs, self.kernel, self.bias)
