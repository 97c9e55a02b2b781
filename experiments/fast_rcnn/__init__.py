"""Fast R-CNN (Girshick, 2015): the regions share one pass of the network over the image."""
