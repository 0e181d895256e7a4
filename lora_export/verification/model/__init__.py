"""The model level: the merged model held against the unmerged one, by outputs."""
