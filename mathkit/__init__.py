"""mathkit: build a linear map, look at its singular vectors."""
