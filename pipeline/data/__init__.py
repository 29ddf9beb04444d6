"""From an archive of images and its label files to batches of pixels."""
