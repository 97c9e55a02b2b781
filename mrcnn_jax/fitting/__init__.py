"""What R-CNN fits on a trained network's features: linear SVMs and box regressors."""
