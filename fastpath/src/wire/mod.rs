//! Packet formats: one file per protocol.
#![forbid(unsafe_code)]
