"""R-CNN (Girshick et al., 2014): regions of the image through a whole network, SVMs, and box regressors."""
