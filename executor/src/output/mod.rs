//! What tasks print: bounded buffers, and lines in this container's log.
