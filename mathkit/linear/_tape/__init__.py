"""A recorded tape: a function's operations at one point, each as a linear map."""
