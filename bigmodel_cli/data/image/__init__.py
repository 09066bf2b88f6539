"""Images: published data sets, decoding, augmentation."""
