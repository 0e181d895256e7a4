"""Where weights live: containers of named, typed byte ranges, read and written without trust."""
