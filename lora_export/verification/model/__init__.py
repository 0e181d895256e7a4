"""The level "model": compares the outputs of the merged model with those of the unmerged one."""
