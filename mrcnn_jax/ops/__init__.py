"""Pure geometry and losses: one image, no parameters."""
