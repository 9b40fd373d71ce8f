//! XDP programs and their loader.
