"""Pictures of a report as SVG, whose places are shares of the width: a phone scales no letter."""
