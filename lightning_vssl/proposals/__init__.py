"""Which regions of a frame are looked at: superpixels, segments, detections."""
