"""Reading what a checkpoint says of itself, without torch: config keys, tensor names, headers."""
