"""What the chapters of these names teach, beyond linear maps and diffusion."""
