"""Mask R-CNN (He et al., 2017): masks and keypoints, the paper table by table."""
