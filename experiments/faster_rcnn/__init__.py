"""Faster R-CNN (Ren et al., 2015): a network proposes the regions."""
