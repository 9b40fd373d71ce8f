//! `compile`, but for policies and services: which way every address goes.
//!
//! | Module | Holds |
//! |---|---|
//! | `world` | a small cluster to change and to compile |
//! | `cases` | one thing at a time |
//! | `property` | random clusters against the rules in words |

mod cases;
mod property;
mod world;
