"""The level "weights": every tensor of a result, compared with the plan and its formula."""
