//! What this pod is made of, read from `/proc`: its UID, its containers, their processes.
