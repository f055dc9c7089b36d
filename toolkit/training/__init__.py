"""Training: recipe and images in, checkpoint out."""
