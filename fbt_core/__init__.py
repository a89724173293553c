"""One training run: a RunSpec goes in, metrics.json and weights.safetensors come out."""
