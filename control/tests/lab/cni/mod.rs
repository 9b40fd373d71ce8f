//! The CNI plugin: called as a container runtime calls it, with a real daemon behind it.
//!
//! | Module | Shows |
//! |---|---|
//! | `runtime` | a container runtime, as far as networks go |
//! | `verbs` | ADD, DEL, CHECK, STATUS, GC, VERSION, one by one |
//! | `policy` | a pod's first packet meets its policies; pods the source does not show yet |
//! | `many` | fifty at once; no address twice; how long an ADD takes beside 250 pods |
//! | `crash` | killed in the middle of ADD and DEL; the daemon away, restarted; a reboot |
//! | `others` | `cnitool`, and the `host-local` IPAM plugin |

mod crash;
mod many;
mod others;
mod policy;
mod runtime;
mod verbs;
