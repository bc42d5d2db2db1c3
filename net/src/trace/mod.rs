//! What becomes of a packet from one pod to another, and why.
