"""The variants of ConvUNext, as plain data."""

# Constructor arguments of each variant; every one can be overridden by keyword.
MODEL_VARIANTS: dict[str, dict] = {
    # mobile, real-time video
    "tiny": {"depth": 3, "initial_filters": 32, "blocks_per_level": 2, "drop_path_rate": 0.0},
    # lightweight edge devices
    "small": {"depth": 3, "initial_filters": 48, "blocks_per_level": 2, "drop_path_rate": 0.1},
    # general purpose
    "base": {"depth": 4, "initial_filters": 64, "blocks_per_level": 3, "drop_path_rate": 0.1},
    # high-fidelity segmentation
    "large": {"depth": 4, "initial_filters": 96, "blocks_per_level": 4, "drop_path_rate": 0.2},
    # the largest: 1.15 billion parameters
    "xlarge": {"depth": 5, "initial_filters": 128, "blocks_per_level": 5, "drop_path_rate": 0.3},
}
